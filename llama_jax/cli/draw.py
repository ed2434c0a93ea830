"""The command that draws: a text becomes a PNG file."""

import argparse
from pathlib import Path

from llama_jax.cli.options import Add, own_code
from llama_jax.errors import UserError


def add(command: Add) -> None:
    """Adds the command to the command line."""
    paint = command("draw", _draw, "draw a picture from a text")
    paint.add_argument("run_dir", type=Path, help="a run that was trained to draw")
    paint.add_argument("text", help="such as 'a small blue circle at the top left'")
    paint.add_argument(
        "--out", type=Path, required=True, metavar="FILE.png", help="is written, or replaced"
    )
    paint.add_argument("--samples", type=int, default=1, metavar="N", help="so many on one sheet")
    paint.add_argument(
        "--temperature", type=float, default=1.0, help="1, the default; 0 always draws the same"
    )
    paint.add_argument("--seed", type=int, default=0)
    own_code(paint)


def _draw(args: argparse.Namespace) -> None:
    if args.out.suffix.lower() != ".png":
        raise UserError(f"--out {args.out}: a PNG file is written; try {args.out.stem or 'x'}.png")
    if args.out.is_dir():
        raise UserError(f"--out {args.out} is a folder; expected the name of a file")
    if not args.out.absolute().parent.is_dir():
        raise UserError(f"--out {args.out}: there is no folder {args.out.parent}; make it first")
    from PIL import Image

    from llama_jax.evals.draw import draw, sheet
    from llama_jax.files import whole_file

    pictures = draw(args.run_dir, args.text, args.samples, args.temperature, args.seed)
    try:
        with whole_file(args.out) as draft:
            Image.fromarray(sheet(pictures)).save(draft, format="PNG")
    except OSError as error:
        raise UserError(
            f"{args.out} cannot be written ({error.strerror}); give another --out"
        ) from None
