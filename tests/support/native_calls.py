"""Calls of the native module for a crowd of operands, and the bits that they leave behind."""

from dataclasses import dataclass, replace

import numpy as np

from support.native_items import Operands, Output, address_of, layout_of, random_input, random_order

SENTINELS = (0x00, 0x5A, 0xFF)
MATRICES = ("affine", "homography", "attention", "similarity", "translation", "rotation")


class Warp:
    """V of every operand."""

    gradients = False

    def __init__(self, cpu, rng, crowd):
        self.cpu = cpu
        self.crowd = crowd
        self.orders = [(random_order(rng, one.feature_map.ndim),) for one in crowd]

    def __str__(self):
        return "\n".join([type(self).__name__, *map(str, self.crowd)])

    def outputs(self, index, sentinel):
        """Memory for the results of one item."""
        one = self.crowd[index]
        shape, dtype = one.grad_output.shape, one.feature_map.dtype
        return (Output(shape, dtype, self.orders[index][0], sentinel),)

    def call(self, index, outputs):
        """A plan, and where its operands and results are."""
        one, results = self.crowd[index], [output and output.array for output in outputs]
        arrays = (*one.operands(gradients=self.gradients), *results)
        plan = one.plan(self.cpu, results, gradients=self.gradients)
        return plan, *(address_of(array) for array in arrays if array is not None)

    def bits(self, threads, sentinel=SENTINELS[1]):
        """All results of one call."""
        outputs = [self.outputs(i, sentinel) for i in range(len(self.crowd))]
        self.cpu.run([self.call(i, outputs[i]) for i in range(len(self.crowd))], threads)
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

    gradients = True

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
        arrays = one.feature_map, one.parameters
        return tuple(
            None if order is None else Output(array.shape, array.dtype, order, sentinel)
            for array, order in zip(arrays, orders, strict=True)
        )


@dataclass(frozen=True)
class Compared:
    """Operands of a warp, what it is compared with, and how."""

    operands: Operands
    fixed: np.ndarray
    weights: np.ndarray | None
    loss: str
    domain: str
    needs: tuple[bool, bool]
    """Whether the gradient and the Gauss-Newton matrix are asked for."""

    @classmethod
    def random(cls, rng, operands):
        """Any comparison of a warp: maps with N of its own or shared, with weights or without."""
        shape, dtype = operands.grad_output.shape, operands.feature_map.dtype
        loss, batches = str(rng.choice(("ssd", "huber", "ncc"))), [shape[0], 1]
        has_matrix = operands.kind in MATRICES and loss != "ncc"
        fixed = random_input(rng, (rng.choice(batches), *shape[1:]), dtype)
        weights = random_input(rng, (rng.choice(batches), 1, *shape[2:]), dtype)
        return cls(
            operands,
            fixed,
            weights if rng.random() < 0.7 else None,
            loss,
            str(rng.choice(("overlap", "all"))),
            (bool(rng.random() < 0.8), has_matrix and bool(rng.integers(2))),
        )

    @property
    def arrays(self):
        """What is read, in the order of the plan."""
        moving, parameters, *basis = self.operands.operands(gradients=False)
        weights = [] if self.weights is None else [self.weights]
        return moving, parameters, self.fixed, *weights, *basis

    def bits(self):
        """All that is read, as it lies in memory."""
        return b"".join(array.tobytes() for array in self.arrays)

    def plan(self, cpu, moving, parameters, fixed, weights, gradient, gauss_newton):
        """The plan of arrays like these; None for what is not there, or not asked for."""
        one = self.operands
        comparison = cpu.Comparison(cpu.Loss[self.loss], 0.7, cpu.Domain[self.domain])
        arrays = one.grad_output, moving, parameters, fixed, weights, gradient, gauss_newton
        layouts = [None if array is None else layout_of(cpu, array) for array in arrays]
        return cpu.Plan.objective(one.options(cpu), comparison, cpu.Kind[one.kind], *layouts)


class Objectives(Warp):
    """How far the warp of every operand is from a fixed map."""

    def __init__(self, cpu, rng, crowd):
        self.cpu = cpu
        self.crowd = [Compared.random(rng, one) for one in crowd if one.has_gradients]
        self.orders = [None] * len(self.crowd)

    def outputs(self, index, sentinel):
        """Memory for the value, the count, the gradient and the Gauss-Newton matrix."""
        one, (needs_gradient, needs_matrix) = self.crowd[index], self.crowd[index].needs
        batch, parameters = len(one.operands.grad_output), one.operands.parameters
        numbers = int(np.prod(parameters.shape[1:]))
        float64 = np.dtype(np.float64)

        def dense(shape, dtype):
            return Output(shape, dtype, range(len(shape)), sentinel)

        return (
            dense((batch,), float64),
            dense((batch,), float64),
            dense((batch, *parameters.shape[1:]), parameters.dtype) if needs_gradient else None,
            dense((batch, numbers, numbers), float64) if needs_matrix else None,
        )

    def call(self, index, outputs):
        """A plan, and where its operands and results are."""
        one, results = self.crowd[index], [output and output.array for output in outputs]
        operands = one.operands.feature_map, one.operands.parameters, one.fixed, one.weights
        plan = one.plan(self.cpu, *operands, *results[2:])
        arrays = *one.arrays, *(array for array in results if array is not None)
        return plan, *map(address_of, arrays)


class OnBytes:
    """The same on bytes, in any dense order of memory.

    Args:
        cpu: The module.
        rng: Chooses orders, and what is asked for.
        crowd: Operands.
        gradients: Whether gradients are computed, for those that have some.
    """

    def __init__(self, cpu, rng, crowd, *, gradients):
        self.cpu, self.gradients = cpu, gradients
        ones = [one for one in crowd if one.has_gradients or not gradients]
        self.orders = [random_order(rng, one.feature_map.ndim) for one in ones]
        self.crowd = [dense(one, order) for one, order in zip(ones, self.orders, strict=True)]
        self.needs = [(bool(rng.integers(2)), bool(rng.integers(2))) for _ in ones]

    def plan(self, index):
        """The plan of a call, whose results lie as its operands do."""
        likes = [pair and pair[0] for pair in self._results(index)]
        return self.crowd[index].plan(self.cpu, likes, gradients=self.gradients)

    def call(self, index):
        """A plan and the bytes of its operands."""
        one, order = self.crowd[index], self.orders[index]
        maps = [one.grad_output, one.feature_map] if self.gradients else [one.feature_map]
        others = one.operands(gradients=self.gradients)[len(maps) :]
        operands = [array.transpose(order).tobytes() for array in maps]
        return self.plan(index), *operands, *(array.tobytes() for array in others)

    def bits(self, threads):
        """All results of one call."""
        calls = [self.call(index) for index in range(len(self.crowd))]
        results = self.cpu.run(calls, threads)
        return [
            [Output.over(memory, like, order).bits() for memory, (like, order) in pairs]
            for pairs in (
                zip(found, self._asked(index), strict=True) for index, found in enumerate(results)
            )
        ]

    def expected_bits(self):
        """The same bits from arrays, each item alone."""
        call = (WarpGradients if self.gradients else Warp)(self.cpu, np.random.default_rng(0), [])
        call.crowd = self.crowd
        call.orders = [
            tuple(None if pair is None else pair[1] for pair in self._results(index))
            for index in range(len(self.crowd))
        ]
        return call.bits_one_by_one()

    def _asked(self, index):
        return [pair for pair in self._results(index) if pair is not None]

    def _results(self, index):
        """What each result is like, and its order of memory; None if it is not asked for."""
        one, order = self.crowd[index], self.orders[index]
        if not self.gradients:
            return [(one.grad_output, order)]
        pairs = (one.feature_map, order), (one.parameters, tuple(range(one.parameters.ndim)))
        return [p if asked else None for p, asked in zip(pairs, self.needs[index], strict=True)]


def dense(one, order):
    """The same operands, maps in this order of memory and parameters in row-major order."""
    back = np.argsort(order)
    maps = {
        name: np.ascontiguousarray(getattr(one, name).transpose(order)).transpose(back)
        for name in ("feature_map", "grad_output")
    }
    return replace(one, parameters=np.ascontiguousarray(one.parameters), **maps)


def bits_of(outputs):
    """The numbers of all outputs, whose guards must be intact."""
    asked = [output for output in outputs if output is not None]
    assert all(output.guards_are_intact() for output in asked), "written outside"
    return [output.bits() for output in asked]
