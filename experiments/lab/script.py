"""The command line that the image experiments share: flags, exit codes, results files."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image

from experiments.lab.output_folder import make_folder
from experiments.lab.progress import Stopped, say
from meta_teleport.errors import UserError
from meta_teleport.runs.run import provenance, write_json
from meta_teleport.tasks.images import Images, load_images

FAILED, STOPPED = 2, 130
SMOKE_IMAGES = 400, 100


def parser(name: str, description: str | None, data: Sequence[str], seeds: int) -> argparse.ArgumentParser:
    """The flags that every image experiment has: --smoke, --data, --data-folder, --out, --seeds, --device."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--smoke", action="store_true", help="toy sizes on the digits, seconds; no claim")
    made.add_argument(
        "--data",
        nargs="+",
        default=list(data),
        help="digits, mnist, fashion_mnist, cifar10 or .npz files; default: %(default)s",
    )
    made.add_argument("--data-folder", type=Path, default=Path("data"), help="where torchvision keeps its files")
    made.add_argument("--no-download", action="store_true", help="fail where a data set is not in --data-folder")
    made.add_argument("--out", type=Path, default=Path(f"runs/{name}"), help="folder for results and progress")
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


def write_results(args: argparse.Namespace, name: str, content: dict[str, Any], began: float) -> None:
    """``<out>/<name>.json``: the content, with smoke flag, seconds, threads and provenance."""
    hardware = {"threads": torch.get_num_threads(), "capability": torch.backends.cpu.get_cpu_capability()}
    head = {"smoke": args.smoke, "seconds": round(time.perf_counter() - began, 1), "hardware": hardware}
    write_json(args.out / f"{name}.json", {**head, "provenance": provenance(args.device), **content})


def save_figure(figure: Figure, path: Path) -> None:
    """The figure as PNG, of 256 colours to be small, and as PDF."""
    for suffix in (".png", ".pdf"):
        figure.savefig(path.with_suffix(suffix), dpi=120, bbox_inches="tight")
    with Image.open(path.with_suffix(".png")) as picture:
        small = picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    small.save(path.with_suffix(".png"), optimize=True)


def run(main: Callable[[], None]) -> None:
    """Runs the script. What a user got wrong is one line and exit code 2, a stop 130.

    Numbers below 1e-38 are zero: the momenta of pixels that are black in nearly every image decay into them, and CPUs
    take a hundred times longer over each.
    """
    torch.set_flush_denormal(True)
    try:
        main()
    except UserError as error:
        say(f"error: {' '.join(str(error).split())}")
        sys.exit(FAILED)
    except (Stopped, KeyboardInterrupt) as stopped:
        say(str(stopped) or "interrupted")
        sys.exit(STOPPED)
