"""What random programs are made of: layers, parameters, functions, views, products, as lines of Python.

An entry returns the source of an expression in the value ``d.h``, whose numbers ``d.x`` decide its sizes. Entries that
do not fit what they are given raise, or make lines that do; the generator draws again.
"""

from collections.abc import Callable
from math import prod
from random import Random
from typing import Any

from torch import Tensor

Entry = Callable[["Draw"], str]


class Draw:
    """The choices for one line of a program: a value, and all that has been made before it."""

    def __init__(self, random: Random, values: dict[str, Tensor], parts: dict[str, str], h: str) -> None:
        self.random, self.values, self.parts, self.h = random, values, dict(parts), h
        self.x: Any = values[h]
        self.n = tuple(self.x.shape)

    def of(self, *options: Any) -> Any:
        return self.random.choice(options)

    def width(self) -> int:
        return int(self.random.choice((2, 3, 4, 4, 6)))

    def part(self, source: str) -> str:
        """A new part of the model, by its source."""
        name = f"p{len(self.parts)}"
        self.parts[name] = source
        return f"self.{name}"

    def param(self, *shape: int) -> str:
        return self.part(f"nn.Parameter(torch.randn({shape}))")

    def buffer(self, *shape: int) -> str:
        return self.part(f"torch.randn({shape})")

    def known(self, *kinds: str) -> str:
        """A part that another line has made."""
        names = [name for name, source in self.parts.items() if source.startswith(kinds)]
        return f"self.{self.random.choice(names)}"

    def like(self) -> str:
        """Another value, of the same shape where there is one."""
        same = [name for name, value in self.values.items() if value.shape == self.x.shape and name != self.h]
        return self.random.choice(same or list(self.values))

    def any(self) -> str:
        return self.random.choice(list(self.values))

    def axis(self) -> int:
        return -self.random.randint(1, len(self.n))

    def number(self) -> str:
        return str(self.of(0.5, 2.0, -1.0, 1.0, 0.0, 3, 1e-6))

    def broadcast(self) -> tuple[int, ...]:
        """A shape that goes with the value entry by entry."""
        shape = self.n[self.random.randint(0, len(self.n)) :]
        return tuple(1 if self.random.random() < 0.4 else n for n in shape)

    def factors(self) -> tuple[int, ...]:
        """Another shape of as many entries."""
        start = self.n[: self.of(0, 1)]
        rest, shape = prod(self.n[len(start) :]), []
        for _ in range(self.random.randint(0, 3)):
            size = self.random.choice([n for n in range(1, 13) if rest % n == 0])
            rest, shape = rest // size, [*shape, size]
        shape.insert(self.random.randint(0, len(shape)), rest)
        return (*start, *shape)

    def order(self, count: int) -> list[int]:
        return self.random.sample(range(count), count)

    def places(self, count: int) -> list[int]:
        """Some indices, distinct or not."""
        return [self.random.randrange(count) for _ in range(self.random.randint(1, count + 1))]

    def cut(self) -> str:
        """A slice of one axis."""
        axis = self.axis()
        size, end = self.n[axis], ", :" * (-axis - 1)
        low = self.random.randrange(size)
        return f"..., {self.of(f'{low}:', f':{low + 1}', '::2', f'-{low + 1}:', str(low))}{end}"


def linear(d: Draw) -> str:
    return f"{d.part(f'nn.Linear({d.n[-1]}, {d.width()}, bias={d.of(True, False)})')}({d.h})"


def convolution(d: Draw) -> str:
    space = len(d.n) - 2
    made, groups = d.width(), d.of(1, 1, 1, 2, d.n[1])
    kind = d.of("Conv", "Conv", "ConvTranspose")
    more = f"padding_mode={d.of(*MODES)}" if kind == "Conv" and d.of(0, 0, 1) else "bias=False"
    settings = f"{d.n[1]}, {made}, {d.of(1, 2, 3)}, padding={d.of(0, 1)}, groups={groups}, {d.of('bias=True', more)}"
    return f"{d.part(f'nn.{kind}{space}d({settings})')}({d.h})"


def norm(d: Draw) -> str:
    c, last = d.n[1], d.n[-1]
    affine = d.of(True, True, False)
    return (
        d.part(
            d.of(
                f"nn.LayerNorm({last}, elementwise_affine={affine})",
                f"nn.LayerNorm({d.n[-2:]}, elementwise_affine={affine})",
                f"nn.RMSNorm({last})",
                f"nn.BatchNorm1d({c}, affine={affine})",
                f"nn.BatchNorm2d({c}, affine={affine})",
                f"nn.GroupNorm({d.of(1, 2)}, {c}, affine={affine})",
                f"nn.InstanceNorm1d({c}, affine={affine})",
            )
        )
        + f"({d.h})"
    )


MODES = "'reflect'", "'circular'", "'replicate'"

LAYERS: tuple[Entry, ...] = (
    *[linear] * 8,
    *[convolution] * 4,
    norm,
    norm,
    lambda d: f"{d.part(f'nn.Linear({d.n[-2]}, {d.width()})')}({d.h}.mT).mT",
    lambda d: f"{d.part(f'nn.Conv1d({d.n[-1]}, {d.width()}, {d.of(1, 3)}, padding={d.of(0, 1)})')}({d.h}.mT).mT",
    lambda d: f"{d.h} @ {d.param(d.n[-1], d.width())}",
    lambda d: f"F.linear({d.h}, {d.param(d.width(), d.n[-1])} * {d.number()})",
    lambda d: f"F.linear({d.h}, {d.param(d.n[-1], 2)} @ {d.param(2, d.n[-1])})",
    lambda d: f"{d.param(d.width(), d.n[-2])} @ {d.h}",
    lambda d: f"{d.h} @ {d.param(d.n[-1])}",
    lambda d: f"F.linear({d.h}, {d.param(d.n[-1])})",
    lambda d: f"F.linear({d.h}, {d.param(4, d.n[-1])}, {d.param(*d.of((4,), (1,), ()))})",
    lambda d: f"torch.einsum('btc,cd->btd', {d.h}, {d.param(d.n[-1], d.width())})",
    lambda d: f"torch.einsum('btc,hcd->bhtd', {d.h}, {d.param(2, d.n[-1], 2)})",
    lambda d: f"torch.einsum('btc,tcd->btd', {d.h}, {d.param(d.n[-2], d.n[-1], 3)})",
    lambda d: f"torch.einsum('btc,c->bt', {d.h}, {d.param(d.n[-1])})",
    lambda d: f"torch.einsum('btc,bsc->bts', {d.h}, {d.like()})",
    lambda d: f"torch.einsum('btc,bsc->tsc', {d.h}, {d.like()})",
    lambda d: f"{d.known('nn.Linear', 'nn.Conv', 'nn.LayerNorm')}({d.h})",
    lambda d: f"{d.known('nn.Linear')}({d.h})",
    lambda d: f"F.linear({d.h}, {d.known('nn.Linear')}.weight.T)",
    lambda d: f"F.linear({d.h}, {d.known('nn.Linear')}.weight[{d.of('1:', ':2', '::2')}])",
)

PARAMETERS: tuple[Entry, ...] = (
    *[lambda d: f"{d.h} {d.of('+', '-')} {d.param(*d.broadcast())}"] * 3,
    *[lambda d: f"{d.h} * {d.param(*d.broadcast())}"] * 3,
    lambda d: f"{d.param(*d.broadcast())} {d.of('+', '-', '*')} {d.h}",
    lambda d: f"{d.h} / {d.param(*d.broadcast())}",
    lambda d: f"{d.h} {d.of('+', '*')} {d.param(*d.of((), (1,)))}",
    lambda d: f"{d.h} {d.of('+', '*', '@')} {d.known('nn.Parameter')}",
    lambda d: f"{d.h} {d.of('+', '*')} {d.known('nn.Linear')}.{d.of('bias', 'weight', 'weight[0]')}",
    lambda d: f"{d.h} {d.of('+', '*')} {d.param(d.n[-1] + 1)}[{d.of('1:', ':-1')}]",
    lambda d: f"{d.h} {d.of('+', '*')} {d.param(d.n[-1], d.n[-2])}.mT",
    lambda d: f"{d.h} + {d.param(*d.n[1:])}.{d.of('mean(0)', 'sum()', 'tanh()', 'flip(-1)')}",
    lambda d: f"torch.cat([{d.param(*d.n)}, {d.h}], {d.axis()})",
    lambda d: f"torch.cat([{d.param(1, *d.n[1:])}.expand{(d.n[0], *[-1] * (len(d.n) - 1))}, {d.h}], {d.axis()})",
    lambda d: f"F.prelu({d.h}, {d.param(d.of(1, d.n[1]))})",
    lambda d: f"torch.addcmul({d.h}, {d.param(*d.n)}, {d.like()})",
    lambda d: f"({d.h} * {d.param(*d.n)}) @ {d.h}.mT",
)

FUNCTIONS: tuple[Entry, ...] = (
    *[lambda d: f"{d.h}.relu()"] * 4,
    lambda d: f"F.leaky_relu({d.h}, 0.1)",
    lambda d: f"{d.h}.abs()",
    lambda d: f"{d.h}.clamp(min={d.of(0, 0, -1)})",
    lambda d: f"-{d.h}",
    lambda d: f"{d.of('F.gelu', 'F.silu', 'torch.tanh', 'torch.sigmoid', 'F.softplus', 'torch.cos')}({d.h})",
    lambda d: f"{d.h}.square()",
    lambda d: f"{d.h}.relu() ** 2",
    lambda d: f"F.dropout({d.h}, 0.3, self.training)",
    *[lambda d: f"{d.h} {d.of('+', '-', '*', '*')} {d.number()}"] * 2,
    lambda d: f"{d.number()} {d.of('+', '-', '*')} {d.h}",
    lambda d: f"{d.h} {d.of('+', '*')} {d.buffer(*d.broadcast())}",
    lambda d: f"{d.h} {d.of('+', '*')} torch.arange({float(d.n[-1])})",
    lambda d: f"{d.h}.softmax({d.axis()})",
    lambda d: f"F.glu({d.h}, {d.axis()})",
    lambda d: f"{d.h}.{d.of('mean', 'sum', 'amax')}({d.axis()}, keepdim={d.of(True, False)})",
    lambda d: f"{d.h} - {d.h}.{d.of('mean', 'amax')}({d.axis()}, keepdim=True)",
    lambda d: f"F.{d.of('max', 'avg')}_pool1d({d.h}, {d.of(2, 3)}, 1, {d.of(0, 1)})",
    lambda d: f"F.normalize({d.h}, dim={d.axis()})",
    lambda d: f"{d.h}.cumsum({d.axis()})",
    lambda d: f"{d.h}.masked_fill(torch.arange({d.n[-1]}) > 1, {d.of(0.0, 1.0)})",
    lambda d: f"torch.where({d.h} > 0, {d.h}, {d.number()} * {d.h})",
    lambda d: f"{d.h}.{d.of('tril', 'triu')}()",
    lambda d: f"{d.h}.to(torch.float64).to({d.h}.dtype)",
    lambda d: f"torch.zeros_like({d.h}) + {d.of('1.0', d.param(d.n[-1]))}",
)  # fmt: skip

VIEWS: tuple[Entry, ...] = (
    lambda d: f"{d.h}.transpose({d.axis()}, {d.axis()})",
    lambda d: f"{d.h}.permute({d.order(len(d.n))})",
    *[lambda d: f"{d.h}.reshape({d.factors()})"] * 2,
    lambda d: f"{d.h}.flatten({d.of(0, 1, -2)})",
    *[lambda d: f"F.pad({d.h}, {tuple(d.of(0, 1, 1, 2) for _ in range(d.of(2, 2, 4)))})"] * 2,
    lambda d: f"F.pad({d.h}, (0, 0, {d.of(1, 2)}, 0))",
    lambda d: f"F.pad({d.h}, (1, {d.of(0, 1)}), value=1.0)",
    lambda d: f"F.pad({d.h}, (1, {d.of(0, 1)}), {d.of(*MODES)})",
    *[lambda d: f"{d.h}.roll({d.of(1, 2)}, {d.axis()})"] * 2,
    lambda d: f"{d.h}.roll((1, {d.of(1, 0)}), ({d.axis()}, {d.axis()}))",
    lambda d: f"{d.h}.flip({d.axis()})",
    lambda d: f"{d.h}.repeat({', '.join(str(d.of(1, 1, 2)) for _ in d.n)})",
    lambda d: f"{d.h}.repeat_interleave(2, {d.axis()})",
    lambda d: f"{d.h}.unsqueeze({d.axis()})",
    lambda d: f"{d.h}[:, None].expand(-1, 2{', -1' * (len(d.n) - 1)})",
    *[lambda d: f"{d.h}[{d.cut()}]"] * 3,
    lambda d: f"{d.h}[..., {d.places(d.n[-1])}]",
    lambda d: f"{d.h}.index_select({(a := d.axis())}, torch.tensor({d.places(d.n[a])}))",
    lambda d: f"{d.h}.gather(-1, torch.tensor({d.order(d.n[-1])}).expand({d.n}))",
    lambda d: f"torch.cat([{d.h}, {d.like()}], {d.axis()})",
    lambda d: f"torch.stack([{d.h}, {d.like()}], {d.axis()})",
    lambda d: f"torch.cat({d.h}.chunk(2, {(a := d.axis())})[::-1], {a})",
    lambda d: f"torch.cat([-{d.h}[..., {d.n[-1] // 2}:], {d.h}[..., :{d.n[-1] // 2}]], -1)",
    lambda d: f"{d.h}.unfold({d.axis()}, 2, 1)",
    lambda d: f"{d.h}.unflatten(-1, (2, -1)).transpose(1, -2)",
    lambda d: f"F.pixel_shuffle({d.h}, 2)",
    lambda d: f"F.unfold({d.h}, 2)",
)

PRODUCTS: tuple[Entry, ...] = (
    *[lambda d: f"{d.h} + {d.like()}"] * 4,
    lambda d: f"{d.h} - {d.like()}",
    lambda d: f"{d.h} {d.of('+', '*')} {d.any()}",
    *[lambda d: f"{d.h} * {d.like()}"] * 2,
    lambda d: f"{d.h} * {d.like()}.{d.of('sigmoid', 'relu', 'detach')}()",
    lambda d: f"{d.h} / (1 + {d.like()}.abs())",
    lambda d: f"{d.h} * ({d.h} + {d.number()})",
    *[lambda d: f"{d.h} @ {d.like()}.mT"] * 2,
    lambda d: f"{d.h}.mT @ {d.like()}",
    lambda d: f"({d.h} @ {d.like()}.mT).softmax(-1) @ {d.like()}",
    lambda d: f"F.scaled_dot_product_attention({d.h}, {d.like()}, {d.like()})",
    lambda d: f"({d.h} * {d.like()}).sum({d.axis()}{d.of(', keepdim=True', '')})",
    lambda d: f"torch.maximum({d.h}, {d.like()})",
    lambda d: f"torch.lerp({d.h}, {d.like()}, 0.3)",
    lambda d: f"torch.where(torch.arange({d.n[-1]}) > 0, {d.h}, {d.like()})",
    lambda d: f"(lambda a, b: a {d.of('+', '*')} b)(*{d.h}.chunk(2, {d.axis()}))",
    lambda d: f"(lambda a, b: a {d.of('+', '*')} b)({d.h}[..., ::2], {d.h}[..., 1::2])",
)

IN_PLACE: tuple[Entry, ...] = (
    lambda d: f"{d.h}.{d.of('relu_', 'tanh_', 'neg_')}()",
    lambda d: f"{d.h}.{d.of('add_', 'mul_')}({d.of(d.number(), d.param(*d.broadcast()), d.like())})",
    lambda d: f"{d.h}.view(-1).{d.of('relu_', 'sigmoid_')}()",
    lambda d: f"({d.h}[{d.cut()}].{d.of('zero_()', 'relu_()', 'mul_(2.0)', 'fill_(1.0)')}, {d.h})[1]",
    lambda d: f"{d.h}.copy_({d.like()})",
    lambda d: f"torch.zeros_like({d.h}).{d.of('copy_', 'add_')}({d.h})",
)

KINDS: dict[tuple[Entry, ...], float] = {
    LAYERS: 10, PARAMETERS: 4, FUNCTIONS: 5, VIEWS: 4, PRODUCTS: 4, IN_PLACE: 0.6,
}  # fmt: skip
