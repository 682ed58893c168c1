"""Calls of the native module for a crowd of operands, and the bits that they leave behind."""

from support.native_items import Output, random_order

SENTINELS = (0x00, 0x5A, 0xFF)


class Warp:
    """V of every operand."""

    name = "warp"

    def __init__(self, cpu, rng, crowd):
        self.cpu = cpu
        self.crowd = crowd
        self.orders = [(random_order(rng, one.feature_map.ndim),) for one in crowd]

    def __str__(self):
        return "\n".join([self.name, *map(str, self.crowd)])

    def outputs(self, index, sentinel):
        """Memory for the results of one item."""
        one = self.crowd[index]
        shape, dtype = one.grad_output.shape, one.feature_map.dtype
        return (Output(shape, dtype, self.orders[index][0], sentinel),)

    def more(self, _index, outputs):
        """The arrays of an item behind those that every item reads."""
        return [None if output is None else output.array for output in outputs]

    def item(self, index, outputs):
        """An item."""
        return self.crowd[index].item(self.cpu, *self.more(index, outputs))

    def run(self, items, threads):
        """Calls the module."""
        getattr(self.cpu, self.name)(items, threads)

    def bits(self, threads, sentinel=SENTINELS[1]):
        """All results of one call."""
        outputs = [self.outputs(i, sentinel) for i in range(len(self.crowd))]
        self.run([self.item(i, outputs[i]) for i in range(len(self.crowd))], threads)
        return [bits_of(each) for each in outputs]

    def bits_one_by_one(self):
        """The same from one call for each item."""
        alone = [type(self)(self.cpu, None, []) for _ in self.crowd]
        for call, one, order in zip(alone, self.crowd, self.orders, strict=True):
            call.crowd, call.orders = [one], [order]
        return [bits for call in alone for bits in call.bits(2)]

    def expected_bits(self, rng):
        """The same bits from every instruction set, any number of threads, and items alone."""
        expected, chosen = self.bits_one_by_one(), self.cpu.instruction_set()
        try:
            for name in self.cpu.instruction_sets():
                self.cpu.use_instruction_set(name)
                for threads in (1, int(rng.integers(2, 5))):
                    found = self.bits(threads, int(rng.choice(SENTINELS)))
                    assert found == expected, f"other bits: {name}, {threads} threads\n{self}"
        finally:
            self.cpu.use_instruction_set(chosen)
        return expected


class WarpGradients(Warp):
    """Gradients of every operand that has any, of some by one operand only."""

    name = "warp_gradients"

    def __init__(self, cpu, rng, crowd):
        super().__init__(cpu, rng, [one for one in crowd if one.has_gradients])
        self.orders = [
            tuple(
                random_order(rng, array.ndim) if rng.random() < 0.8 else None
                for array in (one.feature_map, one.parameters)
            )
            for one in self.crowd
        ]

    def outputs(self, index, sentinel):
        """Memory for the gradients that are asked for; zeros where nothing is written."""
        one, orders = self.crowd[index], self.orders[index]
        left = (one.is_empty, one.moves_nothing)
        return tuple(
            None
            if order is None
            else Output(array.shape, array.dtype, order, 0 if same else sentinel)
            for array, order, same in zip(one.arrays[:2], orders, left, strict=True)
        )

    def more(self, index, outputs):
        """G and the gradients."""
        return [self.crowd[index].grad_output, *super().more(index, outputs)]


def bits_of(outputs):
    """The numbers of all outputs, whose guards must be intact."""
    asked = [output for output in outputs if output is not None]
    assert all(output.guards_are_intact() for output in asked), "written outside"
    return [output.bits() for output in asked]
