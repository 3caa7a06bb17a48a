"""Text to model, byte by byte: any file or folder, or the sources of Python's standard library, which are always there.

Whole files are set aside to choose settings on (validation) and to report (test), so that no text of one part stands in
another; a single file is cut at three places.
"""

import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from meta_teleport.errors import UserError

Part = Literal["train", "validation", "test"]
HELD_OUT = 10
SPLIT_SEED = 1
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}
LARGEST = 2**30


@dataclass(frozen=True)
class Text:
    """Bytes ``(n,)`` to train on, to choose settings on, and to report."""

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor

    def batch(self, part: Part, size: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``size`` pieces of ``length`` bytes, drawn uniformly, and what follows each byte, both ``(size, length)``.

        Raises ``UserError`` where the part is too short for one piece.
        """
        text: Tensor = getattr(self, part)
        if len(text) <= length:
            raise UserError(f"the {part} part of {self.name} has {len(text)} bytes: pieces of {length} need more text")
        start = torch.randint(len(text) - length, (size, 1), generator=generator)
        pieces = text[start + torch.arange(length + 1)].long()
        return pieces[:, :-1], pieces[:, 1:]


def load_text(data: str | Path | None = None) -> Text:
    """The bytes of a file, or of all files below a folder, in the order of their paths; without ``data`` the Python
    sources of the standard library (without tests). A tenth of the files, drawn at random, is the validation part and
    another the test part.

    Raises ``UserError`` for paths that are not there or cannot be read, and for text that is empty or above a gigabyte.
    """
    root = Path(sysconfig.get_path("stdlib")) if data is None else Path(data).expanduser()
    if root.is_file():
        return _cut(root.name, _read([root]))
    paths = [p for p in sorted(root.rglob("*.py" if data is None else "*")) if _belongs(p, root, data is None)]
    if len(paths) < HELD_OUT:
        raise UserError(f"{root} has {len(paths)} files of text: give a file, or a folder of {HELD_OUT} or more")
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    held = len(paths) // HELD_OUT
    chosen = [sorted(order[part]) for part in (slice(2 * held, None), slice(held), slice(held, 2 * held))]
    name = "the standard library" if data is None else root.name
    return Text(name, *(_read([paths[i] for i in indices]) for indices in chosen))


def _belongs(path: Path, root: Path, library: bool) -> bool:
    inner = path.relative_to(root).parts
    hidden = any(part.startswith(".") for part in inner)
    return not hidden and path.is_file() and not (library and LEFT_OUT.intersection(inner))


def _read(paths: list[Path]) -> Tensor:
    try:
        if sum(path.stat().st_size for path in paths) > LARGEST:
            raise UserError(f"{paths[0].parent} has more than a gigabyte of text: name a part of it")
        content = bytearray(b"\n".join(path.read_bytes() for path in paths))
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}): give a file or folder of text") from None
    if not content:
        raise UserError(f"{paths[0]} is empty: give a file or a folder of text")
    return torch.frombuffer(content, dtype=torch.uint8)


def _cut(name: str, content: Tensor) -> Text:
    held = len(content) // HELD_OUT
    kept, validation, test = content.split([len(content) - 2 * held, held, held])
    return Text(name, kept, validation, test)
