"""Point clouds: .npy, .pt, .ply, .pcd, an array or a tensor -> (points, 3) coordinates."""

import importlib
import io
import pickle
import re
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from ..config import PointStemConfig
from .source import Fetch, MediaError, Source, describe, read_source

if TYPE_CHECKING:
    import numpy
    import torch

    PointSource = Source | numpy.ndarray | torch.Tensor

_PCD_HEADER = re.compile(rb"(?:\s*#[^\n]*\n)*\s*(?:VERSION|FIELDS)\s")


def load_point_cloud(
    source: "PointSource", config: PointStemConfig = PointStemConfig(), *, fetch: Fetch | None = None
) -> "torch.Tensor":
    """float32 (points, 3), at most `config.points` of them, from any source.

    A source is the path, bytes, http(s) URL or data: URI of a file, told by its content: NumPy's .npy,
    a torch tensor (.pt), .ply or .pcd; or a numpy array or torch tensor (points, 3). Of .ply and .pcd
    only x, y, z are read, and points that a .pcd marks as not measured (NaN) are left out. Larger clouds
    are thinned, the same points every time, in their order. With `config.unit_sphere` the mean then
    becomes the origin and the largest distance from it 1. `fetch(url) -> bytes` replaces the download.
    Raises MediaError: unreadable source, another format, a missing library, a wrong shape, coordinates
    that are not finite, too few points, points all in one place.
    """
    import torch

    name = describe(source)
    points = _checked(_as_tensor(_given(source, name, fetch), name), name, config)
    if len(points) > config.points:
        # Not every n-th: files are written in patterns (left, right, left, ...) that a step may fall in with.
        shuffled = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))
        points = points[shuffled[: config.points].sort().values]
    if config.unit_sphere:
        points = points - points.mean(dim=0)
        radius = points.norm(dim=1).max()
        if radius == 0:
            raise MediaError(f"{name} has all of its {len(points)} points in one place; give a cloud with an extent")
        points = points / radius
    return points.float()


def _given(source: "PointSource", name: str, fetch: Fetch | None) -> "numpy.ndarray | torch.Tensor":
    """What the source holds, unchecked."""
    # Who holds an array has imported its library, so a look at what is loaded is enough.
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if (torch and isinstance(source, torch.Tensor)) or (numpy and isinstance(source, numpy.ndarray)):
        return source
    if not (isinstance(source, (str, bytes, bytearray, memoryview)) or hasattr(source, "__fspath__")):
        raise MediaError(
            f"an object of type {name} is no point cloud; "
            "give a path, URL, data: URI, bytes, numpy array or torch tensor"
        )
    data = read_source(source, fetch=fetch)
    if data.startswith(b"\x93NUMPY"):
        kind, read, library = "NumPy", _read_npy, None
    elif data.startswith((b"PK\x03\x04", b"\x80")):
        kind, read, library = "torch", _read_pt, None
    elif data.startswith(b"ply"):
        kind, read, library = "PLY", _read_ply, _library("plyfile", name)
    elif _PCD_HEADER.match(data):
        kind, read, library = "PCD", _read_pcd, _library("pypcd4", name)
    else:
        raise MediaError(f"{name} is no point cloud that can be read; give a .npy, .pt, .ply or .pcd file")
    try:
        return read(io.BytesIO(data), library)
    except Exception as error:  # broken files fail in ways no list of types covers
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MediaError(f"{name} is no {kind} file of points, or is cut off ({reason}); save it again") from error


def _library(module: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MediaError(
            f'{name} needs {module}, which is not installed; install it with pip install "adapter-llm[point]"'
        ) from error


def _read_npy(file: io.BytesIO, library: None) -> "numpy.ndarray":
    import numpy

    return numpy.load(file, allow_pickle=False)


def _read_pt(file: io.BytesIO, library: None) -> "torch.Tensor":
    import torch

    try:
        points = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError("it holds more than a tensor, which is not opened since it may run code") from error
    if not isinstance(points, torch.Tensor):
        raise ValueError(f"it holds a {type(points).__name__}, not one tensor")
    return points


def _read_ply(file: io.BytesIO, plyfile: ModuleType) -> "numpy.ndarray":
    import numpy

    elements = {element.name: element.data for element in plyfile.PlyData.read(file)}
    if "vertex" not in elements:
        raise ValueError("it has no vertices")
    return numpy.stack([elements["vertex"][axis] for axis in "xyz"], axis=1)


def _read_pcd(file: io.BytesIO, pypcd4: ModuleType) -> "numpy.ndarray":
    import numpy

    cloud = pypcd4.PointCloud.from_fileobj(file)
    declared = cloud.metadata.points
    if len(cloud.pc_data) != declared:
        raise ValueError(f"it has {len(cloud.pc_data)} of {declared} points")
    points = numpy.stack([cloud.pc_data[axis] for axis in "xyz"], axis=1)
    return points[~numpy.isnan(points).any(axis=1)]


def _as_tensor(points: "numpy.ndarray | torch.Tensor", name: str) -> "torch.Tensor":
    """float64, so that large coordinates (maps) keep their digits until they are centred."""
    import numpy
    import torch

    if isinstance(points, torch.Tensor):
        numeric = points.dtype != torch.bool and not points.is_complex() and points.layout == torch.strided
    else:
        numeric = points.dtype.kind in "iuf"
    if not numeric or points.ndim != 2 or points.shape[1] != 3:
        raise MediaError(
            f"{name} holds points of shape {tuple(points.shape)} and type {points.dtype} "
            "but must hold numbers (points, 3); keep x, y, z of one cloud"
        )
    if isinstance(points, torch.Tensor):
        return points.detach().to("cpu", torch.float64)
    return torch.from_numpy(numpy.array(points, dtype=numpy.float64))


def _checked(points: "torch.Tensor", name: str, config: PointStemConfig) -> "torch.Tensor":
    if len(points) < config.least_points:
        raise MediaError(
            f"{name} has {len(points)} points and the encoder needs {config.least_points}; give a denser cloud"
        )
    if not points.float().isfinite().all():
        raise MediaError(f"{name} has coordinates that are not finite; leave those points out")
    return points
