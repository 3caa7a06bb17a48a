"""The command line that the experiments share: flags, exit codes, results files."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image

from experiments.lab.progress import Stopped, say
from meta_teleport.errors import UserError
from meta_teleport.runs.provenance import provenance
from meta_teleport.runs.run import write_json
from meta_teleport.runs.writing import write_atomically
from meta_teleport.tasks.images import Images, load_images

FAILED, STOPPED = 2, 130
SMOKE_IMAGES = 400, 100


def make_folder(path: Path) -> Path:
    """The folder, made with all above it if it is not there. Raises ``UserError`` where it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder {path} cannot be made ({error.strerror}): choose another --out") from None
    return path


def output_folder(path: str) -> Path:
    """The same as the ``type`` of an argument of argparse: made first, so that a run of hours does not end at a folder
    that is not there. Its default is to be a string, as argparse applies the type to strings alone."""
    try:
        return make_folder(Path(path))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parser(
    name: str,
    description: str | None,
    smoke: str = "toy sizes, seconds; no claim",
    out: Callable[[str], Path] = output_folder,
) -> argparse.ArgumentParser:
    """The flags that every experiment has: --smoke and --out. Its clock begins here, see :func:`finish`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--smoke", action="store_true", help=smoke)
    made.add_argument("--out", type=out, default=f"runs/{name}", help="folder for results and progress")
    made.set_defaults(name=name, began=time.perf_counter(), device="cpu")
    return made


def image_parser(name: str, description: str | None, data: Sequence[str], seeds: int) -> argparse.ArgumentParser:
    """Also those that every image experiment has: --data, --data-folder, --no-download, --seeds, --device. The folder
    is made with the images, by :func:`images_of`."""
    made = parser(name, description, "toy sizes on the digits, seconds; no claim", Path)
    made.add_argument(
        "--data",
        nargs="+",
        default=list(data),
        help="digits, mnist, fashion_mnist, cifar10 or .npz files; default: %(default)s",
    )
    made.add_argument("--data-folder", type=Path, default=Path("data"), help="where torchvision keeps its files")
    made.add_argument("--no-download", action="store_true", help="fail where a data set is not in --data-folder")
    made.add_argument("--seeds", type=int, default=seeds, help="runs per setting; default: %(default)s")
    made.add_argument("--device", default="cpu", help="cpu or cuda")
    return made


def images_of(args: argparse.Namespace) -> dict[str, Images]:
    """The data sets that were asked for, by name; with --smoke the first few digits. All are loaded, and --out is made,
    before anything runs, so that a bad one costs nothing."""
    names = ["digits"] if args.smoke else args.data
    loaded = [load_images(name, args.data_folder, not args.no_download).to(args.device) for name in names]
    if len({images.name for images in loaded}) < len(loaded):
        raise UserError(f"two of the data sets {', '.join(names)} have the same name: rename one of the files")
    make_folder(args.out)
    return {images.name: images.head(*SMOKE_IMAGES) if args.smoke else images for images in loaded}


def finish(
    args: argparse.Namespace, content: dict[str, Any], text: str = "", figures: Mapping[str, Figure] | None = None
) -> None:
    """Writes ``<name>.json`` (the content, with smoke flag, seconds, threads and provenance), ``<name>.md`` and the
    figures, by the names of their files, and prints the text."""
    hardware = {"threads": torch.get_num_threads(), "capability": torch.backends.cpu.get_cpu_capability()}
    head = {"smoke": args.smoke, "seconds": round(time.perf_counter() - args.began, 1), "hardware": hardware}
    write_json(args.out / f"{args.name}.json", {**head, "provenance": provenance(args.device), **content})
    write_atomically(args.out / f"{args.name}.md", text.encode())
    for name, figure in (figures or {}).items():
        save_figure(figure, args.out / name)
    print(text)


def save_figure(figure: Figure, path: Path) -> None:
    """The figure as PNG, of 256 colours to be small, and as PDF."""
    for suffix in (".png", ".pdf"):
        figure.savefig(path.with_suffix(suffix), dpi=120, bbox_inches="tight")
    with Image.open(path.with_suffix(".png")) as picture:
        small = picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    small.save(path.with_suffix(".png"), optimize=True)


def run(main: Callable[[], None], denormals: bool = False) -> None:
    """Runs the script. What a user got wrong is one line and exit code 2, a stop 130.

    Without ``denormals``, numbers below 1e-38 are zero: the momenta of pixels that are black in nearly every image
    decay into them, and CPUs take a hundred times longer over each.
    """
    torch.set_flush_denormal(not denormals)
    try:
        main()
    except UserError as error:
        say(f"error: {' '.join(str(error).split())}")
        sys.exit(FAILED)
    except (Stopped, KeyboardInterrupt) as stopped:
        say(str(stopped) or "interrupted")
        sys.exit(STOPPED)
