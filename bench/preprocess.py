"""Measure the speed and memory of preparing photographs: `python -m bench.preprocess`.

Makes an archive as large as Oxford Flowers 102 (8,189 JPEGs of 500×650, with its labels and splits), and runs the
preprocess stage on it in a process of its own: as it is, and with every JPEG decoded at full scale. Its photographs are
48 drawn flowers under noise with the spectrum of natural images, repeated with different comments, so that no two files
are the same. Making them is not timed.
"""

import argparse
import hashlib
import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import chdir
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image
from ruamel.yaml import YAML
from scipy.io import savemat

from contract.class_names import FLOWERS102_CLASSES
from stages.datasets.flowers102 import ARCHIVE, LABELS, SPLITS
from stages.datasets.synthetic.flowers import generate

PROJECT = Path(__file__).parents[1]
WIDTH, HEIGHT = 500, 650
NUM_DIFFERENT = 48
QUALITY = 75
NOISE_LEVELS = 10.0

# The stage as `python -m stages.preprocess` runs it, with another margin; it prints the peak memory of its process.
STAGE = """
import re, sys
from pathlib import Path
from stages import preprocess
from stages.datasets import decoding
decoding.MARGIN = int(sys.argv[1])
preprocess.run_stage("preprocess", preprocess.preprocess)
print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
MARGINS = {"reduced-scale decode": "2", "full-scale decode": "1000000"}


def main() -> None:
    arguments = _parse_arguments()
    seconds: dict[str, list[float]] = {name: [] for name in MARGINS}
    peaks: dict[str, list[float]] = {name: [] for name in MARGINS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size_mb = write_dataset(folder, arguments.num_images, arguments.image_size)
        print(
            f"{arguments.num_images} JPEGs of {WIDTH}x{HEIGHT}, {size_mb:.0f} MB, to {arguments.image_size} pixels; "
            f"{len(os.sched_getaffinity(0))} cores; Pillow {PIL.__version__}",
            flush=True,
        )
        for _ in range(arguments.rounds):
            for variant, margin in MARGINS.items():
                elapsed, peak = run_stage(folder, margin)
                seconds[variant].append(elapsed)
                peaks[variant].append(peak)
    print(f"{'':24} {'seconds':>8} {'images/s':>9} {'peak GiB':>9} {'time against full':>18}")
    for variant, values in seconds.items():
        elapsed = statistics.median(values)
        full = seconds["full-scale decode"]
        ratio = statistics.median(one / other for one, other in zip(values, full, strict=True))
        rate = arguments.num_images / elapsed
        print(f"{variant:24} {elapsed:8.1f} {rate:9.0f} {max(peaks[variant]):9.2f} {ratio:16.2f} x")


def run_stage(folder: Path, margin: str) -> tuple[float, float]:
    """Run the stage and return its seconds, imports included, and its peak memory in GiB."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", STAGE, margin]
    started = time.perf_counter()
    result = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    elapsed = time.perf_counter() - started
    return elapsed, int(result.stdout.split()[-1]) / 2**20


def write_dataset(folder: Path, num_images: int, image_size: int) -> float:
    """Write params.yaml, data/ and the receipt like the download stage; return the archive's size in MB."""
    from contract.paths import DATA, RECEIPT
    from stages.datasets.pin import list_files, make_receipt
    from stages.runtime.outputs import write_json

    profile = YAML(typ="safe").load(PROJECT / "profiles" / "flowers102.yaml")
    profile["preprocess"]["image_size"] = image_size
    YAML(typ="safe").dump(profile, folder / "params.yaml")
    with chdir(folder):
        DATA.mkdir()
        write_archive(DATA / ARCHIVE, num_images)
        numbers = np.arange(num_images)
        savemat(DATA / LABELS, {"labels": numbers[None] % len(FLOWERS102_CLASSES) + 1})
        parts = {key: numbers[None, part::3] + 1 for part, key in enumerate(("trnid", "valid", "tstid"))}
        savemat(DATA / SPLITS, parts)
        write_json(RECEIPT, make_receipt("flowers102", list_files(DATA)))
        return (DATA / ARCHIVE).stat().st_size / 1e6


def write_archive(path: Path, num_images: int) -> None:
    """Write an archive of photographs with the names of the dataset."""
    encoded = [jpeg(photograph(WIDTH, HEIGHT, seed)) for seed in range(min(NUM_DIFFERENT, num_images))]
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for number in range(1, num_images + 1):
            content = add_comment(encoded[number % len(encoded)], hashlib.sha256(str(number).encode()).digest())
            entry = tarfile.TarInfo(f"jpg/image_{number:05d}.jpg")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def photograph(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """Return a drawn flower under noise whose amplitude falls with frequency like that of natural images, as 1/f.

    Returns:
        uint8 (height, width, 3), RGB.
    """
    side = max(width, height)
    (drawn,), _ = generate(1, side, seed)
    left, top = (side - width) // 2, (side - height) // 2
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    white = np.random.default_rng(seed).standard_normal((3, height, width))
    noise = np.fft.irfft2(np.fft.rfft2(white) / np.maximum(frequencies, 1.0 / side), s=(height, width))
    noise *= NOISE_LEVELS / noise.std()
    pixels: NDArray[np.float64] = drawn[top : top + height, left : left + width] + noise.transpose(1, 2, 0)
    return pixels.clip(0, 255).astype(np.uint8)


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Encode an image like a camera, with chroma at half the resolution."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=QUALITY, subsampling="4:2:0")
    return buffer.getvalue()


def add_comment(encoded: bytes, comment: bytes) -> bytes:
    """Return the photograph with a comment after the start-of-image marker."""
    segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
    return encoded[:2] + segment + encoded[2:]


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.preprocess", description=__doc__)
    parser.add_argument("--num-images", type=int, default=8189, help="photographs (default 8189, as the dataset has)")
    parser.add_argument("--image-size", type=int, default=64, help="height and width (default 64, as published)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median counts (default 3)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
