"""Random items for the native module: any options, values and strides, in NumPy memory.

Needs no torch, so that it runs quickly under sanitizers. Whatever the module writes lies between
guards and is filled with a sentinel beforehand.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

KINDS = (
    "affine",
    "homography",
    "attention",
    "similarity",
    "translation",
    "rotation",
    "spline",
    "flow",
    "grid",
)
VOLUME_KINDS = ("affine", "flow", "grid")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
PADDINGS = ("zeros", "border", "reflection", "fill")
UNITS = ("normalized", "normalized_corners", "pixel")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (*map(np.dtype, ("float32", "float64", "float16", "uint8")), BFLOAT16)
WILD = (
    0.0,
    -0.0,
    0.5,
    1e-45,
    1e-310,
    1e9,
    2.0**31,
    -(2.0**63),
    3e38,
    1e300,
    np.inf,
    -np.inf,
    np.nan,
)
GUARD = 64
"""Numbers on both sides of whatever is written."""


@dataclass(frozen=True)
class Operands:
    """What an item reads; enumerations by name, so that any build of the module can run it."""

    kind: str
    interpolation: str
    padding: str
    unit: str
    zero_subgradient: bool
    fill: list[float]
    feature_map: np.ndarray
    parameters: np.ndarray
    basis: np.ndarray | None
    grad_output: np.ndarray

    def __str__(self):
        named = {**vars(self), "fill": self.fill[:3]}
        shown = {
            name: (value.shape, value.strides, str(value.dtype))
            if isinstance(value, np.ndarray)
            else value
            for name, value in named.items()
        }
        if self.parameters.size < 20:
            shown["numbers"] = self.parameters.tolist()
        return str(shown)

    def operands(self, *, gradients):
        """The arrays that a plan reads, in its order."""
        maps = (self.grad_output, self.feature_map) if gradients else (self.feature_map,)
        return *maps, self.parameters, *([] if self.basis is None else [self.basis])

    def options(self, cpu):
        """The options of a plan."""
        return cpu.Options(
            cpu.Interpolation[self.interpolation],
            cpu.Padding[self.padding],
            cpu.Unit[self.unit],
            self.zero_subgradient,
            self.fill,
        )

    def plan(self, cpu, results, *, gradients):
        """The plan of a warp, or of its gradients, into arrays like these; None if not needed."""
        make = cpu.Plan.gradients if gradients else cpu.Plan.warp
        maps = (self.grad_output, self.feature_map) if gradients else (self.feature_map,)
        layouts = [
            None if array is None else layout_of(cpu, array)
            for array in (*maps, self.parameters, *results)
        ]
        return make(self.options(cpu), cpu.Kind[self.kind], *layouts)

    def bits(self):
        """All that is read, as it lies in memory."""
        return b"".join(array.tobytes() for array in self.operands(gradients=True))

    @property
    def has_gradients(self):
        """Grey levels have none."""
        return self.feature_map.dtype != np.uint8

    @property
    def is_empty(self):
        """Whether there is no target pixel: gradients are then left as they were."""
        return self.grad_output.size == 0

    @property
    def moves_nothing(self):
        """Whether the gradient of the parameters is left as it was."""
        return self.is_empty or self.interpolation == "nearest"


class Output:
    """Dense memory of any order of axes between two guards, filled with a sentinel."""

    def __init__(self, shape, dtype, order, sentinel):
        count = int(np.prod(shape, dtype=np.int64))
        self._memory = np.full((count + 2 * GUARD) * dtype.itemsize, sentinel, np.uint8)
        numbers = self._memory.view(dtype)[GUARD : GUARD + count]
        self.array = numbers.reshape([shape[a] for a in order]).transpose(np.argsort(order))
        self._sentinel = sentinel

    @classmethod
    def over(cls, memory, like, order):
        """Bytes that somebody else has written: numbers like an array's, in an order of memory."""
        output = cls(like.shape, like.dtype, order, 0)
        numbers = np.frombuffer(memory, like.dtype)
        output.array.transpose(order)[...] = numbers.reshape([like.shape[a] for a in order])
        return output

    def guards_are_intact(self):
        """Whether nothing was written outside."""
        size = GUARD * self.array.itemsize
        return bool((self._memory[:size] == self._sentinel).all()) and bool(
            (self._memory[-size:] == self._sentinel).all()
        )

    def bits(self):
        """The numbers, bit for bit, except that one NaN is as good as another."""
        array = np.ascontiguousarray(self.array)
        if array.dtype != np.uint8:
            array = np.where(np.isnan(array), np.array(np.nan, array.dtype), array)
        return array.tobytes()


def layout_of(cpu, array):
    """Where the numbers of an array lie."""
    strides = [stride // array.itemsize for stride in array.strides]
    return cpu.Layout(cpu.Storage[str(array.dtype)], array.shape, strides)


def address_of(array):
    """Where an array begins."""
    return array.ctypes.data


def random_order(rng, axes):
    """Contiguous, channels last, or any."""
    last = (0, *range(2, axes), 1) if axes > 2 else tuple(range(axes))
    any_order = tuple(int(axis) for axis in rng.permutation(axes))
    return (tuple(range(axes)), last, any_order)[rng.choice(3)]


def laid_out(rng, values):
    """The same values in memory of their own with other strides: any order, gaps, backwards."""
    if rng.random() < 0.3:
        return values.copy()
    order = random_order(rng, values.ndim)
    steps = rng.choice([1, 1, 1, -1, 2, -3], values.ndim)
    room = [size * abs(step) for size, step in zip(values.shape, steps, strict=True)]
    memory = np.zeros([room[a] for a in order], values.dtype).transpose(np.argsort(order))
    view = memory[tuple(slice(None, None, step) for step in steps)]
    view[...] = values
    return view


def repeated(rng, array):
    """The array with stride 0 along an axis, as broadcasting makes it."""
    strides = list(array.strides)
    strides[rng.integers(array.ndim)] = 0
    return np.lib.stride_tricks.as_strided(array, array.shape, strides)


def random_values(rng, shape, dtype):
    """Normal numbers, small integers or wild ones; any grey levels."""
    if dtype == np.uint8:
        return rng.integers(0, 256, shape, np.uint8)
    values = rng.standard_normal(shape)
    style = rng.random()
    if style < 0.2:
        values = np.rint(3 * values)
    elif style < 0.35:
        values = np.where(rng.random(shape) < 0.2, rng.choice(WILD, shape), values)
    with np.errstate(all="ignore"):
        return values.astype(dtype)


def random_input(rng, shape, dtype):
    """Random values in memory of random strides."""
    array = laid_out(rng, random_values(rng, shape, dtype))
    return repeated(rng, array) if array.size and rng.random() < 0.1 else array


def random_operands(rng):
    """What an item reads, of any kind and of sizes up to 70."""
    axes = 3 if rng.random() < 0.3 else 2
    kind = str(rng.choice(KINDS if axes == 2 else VOLUME_KINDS))
    dtype = DTYPES[rng.choice(len(DTYPES))]
    batch, batch_u, batch_theta = _batches(rng)
    channels = int(rng.choice([0, 1, 2, 3, 3, 4, 5, 17, 33], p=[0.02, *[0.1225] * 8]))
    source = [max(1, size) for size in _sizes(rng, axes)]
    target = _sizes(rng, axes)
    unit = str(rng.choice(UNITS))
    parameters = _parameters(rng, kind, batch_theta, source, target, unit)
    basis = None
    if kind == "spline":
        pixels = int(np.prod(target))
        basis = random_values(rng, (parameters.shape[1], pixels), np.dtype(np.float64))
    with np.errstate(all="ignore"):
        parameters = parameters.astype(rng.choice([np.float32, np.float64]))
    return Operands(
        kind=kind,
        interpolation=str(rng.choice(INTERPOLATIONS)),
        padding=str(rng.choice(PADDINGS)),
        unit=unit,
        zero_subgradient=bool(rng.random() < 0.3),
        fill=rng.choice([0.0, 1.5, -300.0, np.nan, np.inf], max(1, channels)).tolist()
        if rng.random() < 0.5
        else [float(rng.standard_normal())],
        feature_map=random_input(rng, (batch_u, channels, *source), dtype),
        parameters=laid_out(rng, parameters),
        basis=basis,
        grad_output=random_input(rng, (batch, channels, *target), dtype),
    )


def _batches(rng):
    """N of the result, of the feature map and of the transform."""
    batch = int(rng.choice([0, 1, 2, 3], p=[0.03, 0.47, 0.3, 0.2]))
    return batch, *(batch if rng.random() < 0.7 else 1 for _ in range(2))


def _sizes(rng, axes):
    """Up to 70 along each axis (14 in volumes), thin and up to 300 long, or a little over 4096."""
    style = rng.random()
    if style < 0.03:
        return _long_sizes(rng, axes)
    most = 5 if style < 0.5 else 70 if axes == 2 else 14
    sizes = [int(size) for size in rng.integers(1, most + 1, axes)]
    if style < 0.1:
        sizes[rng.integers(axes)] = int(rng.integers(65, 300))
    if rng.random() < 0.05:
        sizes[rng.integers(axes)] = 0
    return sizes


def _long_sizes(rng, axes):
    """Rows of up to 3, or a row or two: more than one thread takes at a time."""
    sizes, width = [1] * axes, int(rng.integers(1, 4))
    long, short = rng.permutation(axes)[:2]
    sizes[short], sizes[long] = width, 4096 // width + int(rng.integers(1, 200))
    return sizes


def _parameters(rng, kind, n, source, target, unit):
    """Numbers that read mostly inside and around the feature map, some of them wild."""
    axes = len(source)
    extent = np.array(source[::-1]) if unit == "pixel" else np.ones(axes)
    noise = rng.choice([0.0, 1e-3, 0.3, 3.0])
    if kind in {"flow", "grid"}:
        values = rng.uniform(-1.3, 1.3, (n, *target, axes)) * extent * (noise or 1.0)
    elif kind == "spline":
        values = rng.uniform(-1, 1, (n, rng.integers(3, 7), 2)) * extent
    else:
        identity = _identity(kind, axes)
        values = identity + noise * rng.standard_normal((n, *identity.shape))
    style = rng.random()
    if style < 0.2:
        values = np.rint(2 * values) / 2
    elif style < 0.4:
        values = np.where(rng.random(values.shape) < 0.1, rng.choice(WILD, values.shape), values)
    return values


def _identity(kind, axes):
    return {
        "affine": np.eye(axes, axes + 1),
        "homography": np.eye(3),
        "attention": np.array([1.0, 0, 0]),
        "similarity": np.array([1.0, 0, 0, 0]),
        "translation": np.zeros(2),
        "rotation": np.zeros(1),
    }[kind]
