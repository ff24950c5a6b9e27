"""Every way a point cloud can come in, and every way it can be unreadable."""

import base64
import io
import sys

import numpy
import pytest
import torch

from imagebind_encoder import MediaError, PointStemConfig, load_point_cloud
from imagebind_encoder.media import point as point_module

AS_IT_IS = PointStemConfig(groups=6, group_size=5, points=64, unit_sphere=False)
FIT = PointStemConfig(groups=6, group_size=5, points=64)
PROPERTIES = "property float x\nproperty float y\nproperty float z\n"


@pytest.fixture
def points():
    return numpy.random.default_rng(3).normal(size=(41, 3)).astype(numpy.float32)


def npy(array):
    buffer = io.BytesIO()
    numpy.save(buffer, array)
    return buffer.getvalue()


def pt(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def rows(points):
    return "".join(f"{float(x)!r} {float(y)!r} {float(z)!r}\n" for x, y, z in points).encode()


def ply_header(count, form="binary_little_endian", properties=PROPERTIES, behind=""):
    return f"ply\nformat {form} 1.0\nelement vertex {count}\n{properties}{behind}end_header\n".encode()


def pcd_header(count, data="binary", comment="# .PCD v0.7 - Point Cloud Data file format\n"):
    return (
        f"{comment}VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\n"
        f"WIDTH {count}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {count}\nDATA {data}\n"
    ).encode()


def plys(points):
    faces = "element face 2\nproperty list uchar int vertex_indices\n"
    indices = b"\3" + numpy.array([0, 1, 2], "<i4").tobytes() + b"\4" + numpy.array([0, 1, 2, 3], "<i4").tobytes()
    mixed = numpy.empty(len(points), [("red", "u1"), ("z", "<f8"), ("y", "<f4"), ("x", "<f4")])
    mixed["red"], mixed["x"], mixed["y"], mixed["z"] = 7, *points.T
    mixed_properties = "property uchar red\nproperty double z\nproperty float y\nproperty float x\n"
    return {
        "ascii": ply_header(len(points), "ascii") + rows(points),
        "little": ply_header(len(points)) + points.tobytes(),
        "big": ply_header(len(points), "binary_big_endian") + points.astype(">f4").tobytes(),
        "mesh": ply_header(len(points), behind=faces) + points.tobytes() + indices,
        "other order": ply_header(len(points), properties=mixed_properties) + mixed.tobytes(),
    }


def pcds(points):
    import lzf

    columns = points.T.tobytes()
    packed = lzf.compress(columns, 2 * len(columns))
    sizes = numpy.array([len(packed), len(columns)], "<u4").tobytes()
    return {
        "ascii": pcd_header(len(points), "ascii") + rows(points),
        "binary": pcd_header(len(points)) + points.tobytes(),
        "no comment": pcd_header(len(points), comment="") + points.tobytes(),
        "compressed": pcd_header(len(points), "binary_compressed") + sizes + packed,
    }


def test_arrays_and_tensors(points, tmp_path):
    expected = torch.from_numpy(points)
    wide = points.astype(numpy.float64)
    sources = [points, wide, points.astype(">f4"), points[::-1][::-1], numpy.asfortranarray(points)]
    sources += [expected, expected.double(), expected.clone().requires_grad_()]
    sources += [npy(points), npy(wide), pt(expected), pt(expected, _use_new_zipfile_serialization=False)]
    for name, data in (("cloud.npy", npy(points)), ("cloud.anything", pt(torch.nn.Parameter(expected)))):
        (tmp_path / name).write_bytes(data)
        sources += [tmp_path / name, str(tmp_path / name)]
    sources += [bytearray(npy(points)), "data:;base64," + base64.b64encode(pt(expected)).decode()]
    for source in sources:
        loaded = load_point_cloud(source, AS_IT_IS)
        assert loaded.dtype == torch.float32 and not loaded.requires_grad
        assert torch.equal(loaded, expected), type(source)
    assert torch.equal(load_point_cloud(wide[::-1], AS_IT_IS), expected.flip(0))
    read_only = numpy.frombuffer(wide.tobytes()).reshape(-1, 3)
    assert torch.equal(load_point_cloud(read_only, AS_IT_IS), expected)
    assert torch.equal(load_point_cloud(numpy.arange(60).reshape(20, 3), AS_IT_IS), torch.arange(60.0).view(20, 3))
    assert torch.equal(load_point_cloud(expected.bfloat16(), AS_IT_IS), expected.bfloat16().float())


def test_given_points_are_not_changed_nor_shared(points):
    before = points.copy()
    for source in (points, torch.from_numpy(points), torch.from_numpy(points).double()):
        for config in (AS_IT_IS, FIT):
            load_point_cloud(source, config).zero_()
            assert numpy.array_equal(points, before)
    double = torch.from_numpy(points).double()
    load_point_cloud(double, AS_IT_IS)
    assert torch.equal(double, torch.from_numpy(before).double())


@pytest.mark.parametrize("kind", ["ascii", "little", "big", "mesh", "other order"])
def test_ply(points, kind, tmp_path):
    pytest.importorskip("plyfile", reason="plyfile, of the extra [point], is not installed")
    (tmp_path / "cloud.ply").write_bytes(plys(points)[kind])
    assert torch.equal(load_point_cloud(tmp_path / "cloud.ply", AS_IT_IS), torch.from_numpy(points))


@pytest.mark.parametrize("kind", ["ascii", "binary", "no comment", "compressed"])
def test_pcd(points, kind):
    pytest.importorskip("pypcd4", reason="pypcd4, of the extra [point], is not installed")
    assert torch.equal(load_point_cloud(pcds(points)[kind], AS_IT_IS), torch.from_numpy(points))


def test_points_a_pcd_file_did_not_measure_are_left_out(points):
    pytest.importorskip("pypcd4", reason="pypcd4, of the extra [point], is not installed")
    holes = points.copy()
    holes[[3, 17]] = numpy.nan
    holes[20, 1] = numpy.nan
    kept = numpy.delete(points, [3, 17, 20], axis=0)
    assert torch.equal(load_point_cloud(pcds(holes)["binary"], AS_IT_IS), torch.from_numpy(kept))
    assert torch.equal(load_point_cloud(pcds(holes)["ascii"], AS_IT_IS), torch.from_numpy(kept))
    holes[2:] = numpy.nan
    with pytest.raises(MediaError, match="has 2 points and the encoder needs 6"):
        load_point_cloud(pcds(holes)["binary"], AS_IT_IS)
    holes[:] = numpy.inf
    with pytest.raises(MediaError, match="not finite"):
        load_point_cloud(pcds(holes)["binary"], AS_IT_IS)


def test_urls_go_through_the_given_fetch(points):
    asked = []

    def fetch(url):
        asked.append(url)
        return npy(points)

    assert load_point_cloud("https://example.org/c.npy", AS_IT_IS, fetch=fetch).shape == (41, 3)
    assert asked == ["https://example.org/c.npy"]


def test_clouds_are_centred_and_scaled_to_the_unit_sphere(points):
    fitted = load_point_cloud(points * 7 + numpy.array([500.0, -3, 2], numpy.float32), FIT)
    torch.testing.assert_close(fitted.mean(dim=0), torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(fitted.norm(dim=1).max(), torch.tensor(1.0), rtol=0, atol=1e-6)
    wide = points.astype(numpy.float64)
    centred = wide - wide.mean(axis=0)
    expected = centred / numpy.linalg.norm(centred, axis=1).max()
    torch.testing.assert_close(load_point_cloud(wide, FIT), torch.from_numpy(expected).float(), rtol=0, atol=1e-7)
    far = load_point_cloud(wide + 4_500_000.0, FIT)  # metres on a map, which float32 rounds to halves
    torch.testing.assert_close(far, torch.from_numpy(expected).float(), rtol=0, atol=1e-6)


def test_large_clouds_are_thinned_the_same_way_every_time():
    cloud = torch.arange(600.0).view(200, 3)
    thinned = load_point_cloud(cloud, AS_IT_IS)
    assert thinned.shape == (64, 3)
    kept = (thinned[:, 0] / 3).long()
    assert torch.equal(thinned, cloud[kept]) and (kept.diff() > 0).all()  # points of the cloud, each once, in order
    assert torch.equal(load_point_cloud(cloud, AS_IT_IS), thinned)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(load_point_cloud(cloud.numpy(), AS_IT_IS), thinned)
    assert torch.equal(torch.get_rng_state(), state)
    assert load_point_cloud(cloud[:64], AS_IT_IS).shape == (64, 3)
    scaled = load_point_cloud(cloud, FIT)
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(scaled.norm(dim=1).max(), torch.tensor(1.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("step", [2, 3, 4])
def test_thinning_does_not_fall_in_with_a_pattern_in_the_file(step):
    side = torch.arange(64 * step) % step
    cloud = torch.stack([side, torch.arange(len(side)), torch.ones(len(side))], dim=1).float()
    kept = load_point_cloud(cloud, AS_IT_IS)[:, 0]
    assert all((kept == value).sum() > 64 / step / 2 for value in range(step))


class Runs:
    """Unpickled, it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_files_with_code_in_them_are_refused_and_not_run(tmp_path):
    trap = tmp_path / "trap"
    object_array = numpy.empty((8, 3), dtype=object)
    object_array[:] = Runs(trap)
    buffer = io.BytesIO()
    numpy.save(buffer, object_array, allow_pickle=True)
    sources = [pt(Runs(trap)), pt({"points": Runs(trap)}, _use_new_zipfile_serialization=False), buffer.getvalue()]
    for data in sources:
        with pytest.raises(MediaError, match=r"is no (torch|NumPy) file of points"):
            load_point_cloud(data, AS_IT_IS)
    assert not trap.exists()
    with pytest.raises(MediaError, match="more than a tensor, which is not opened since it may run code"):
        load_point_cloud(sources[0], AS_IT_IS)


@pytest.mark.parametrize("cut", [1, 12, 100, 300])
def test_truncated_files(points, cut):
    pytest.importorskip("plyfile", reason="plyfile, of the extra [point], is not installed")
    pytest.importorskip("pypcd4", reason="pypcd4, of the extra [point], is not installed")
    whole = [*plys(points).values(), *pcds(points).values(), npy(points), pt(torch.from_numpy(points))]
    for data in whole:
        load_point_cloud(data, AS_IT_IS)
        if b"ascii" in data and cut < 100:
            continue  # a cut in its last number cannot be seen
        with pytest.raises(MediaError, match="is no .* file of points, or is cut off .*; save it again") as caught:
            load_point_cloud(data[:-cut], AS_IT_IS)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data, message", [
    (ply_header(0), "has 0 points and the encoder needs 6; give a denser cloud"),
    (ply_header(0, "ascii"), "has 0 points"),
    (ply_header(1, properties="property float u\n") + bytes(4), "is no PLY file of points"),
    (b"ply\nformat ascii 1.0\nelement face 0\nproperty list uchar int v\nend_header\n", "it has no vertices"),
    (b"ply\n", "is no PLY file of points"),
    (ply_header(10**12) + bytes(120), "is no PLY file of points"),
])  # fmt: skip
def test_broken_ply_files(data, message):
    pytest.importorskip("plyfile", reason="plyfile, of the extra [point], is not installed")
    with pytest.raises(MediaError, match=message):
        load_point_cloud(data, AS_IT_IS)


@pytest.mark.parametrize("data, message", [
    (pcd_header(0), "has 0 points"),
    (pcd_header(40) + bytes(12 * 39), "it has 39 of 40 points"),
    (pcd_header(40, "zip") + bytes(480), "is no PCD file of points"),
    (pcd_header(40).replace(b"x y z", b"r s t") + bytes(480), "is no PCD file of points"),
    (pcd_header(40).replace(b"SIZE 4 4 4", b"SIZE 4 4") + bytes(480), "is no PCD file of points"),
    (pcd_header(10**12, "binary_compressed") + bytes(480), "is no PCD file of points"),
])  # fmt: skip
def test_broken_pcd_files(data, message):
    pytest.importorskip("pypcd4", reason="pypcd4, of the extra [point], is not installed")
    with pytest.raises(MediaError, match=message) as caught:
        load_point_cloud(data, AS_IT_IS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source, message", [
    (numpy.zeros((9, 4)), r"ndarray holds points of shape \(9, 4\) and type float64 but must hold numbers \(points"),
    (numpy.zeros((1, 9, 3)), r"shape \(1, 9, 3\)"),
    (numpy.zeros(9), r"shape \(9,\)"),
    (numpy.zeros((9, 3), dtype=complex), "type complex128"),
    (numpy.zeros((9, 3), dtype=bool), "type bool"),
    (numpy.full((9, 3), "x"), "type <U1"),
    (torch.zeros(9, 3, dtype=torch.bool), "type torch.bool"),
    (torch.zeros(9, 3, dtype=torch.complex64), "type torch.complex64"),
    (torch.zeros(9, 3).to_sparse(), "must hold numbers"),
    (torch.zeros(3, 9), r"keep x, y, z of one cloud"),
    (npy(numpy.zeros((9, 6))), r"\d+ bytes holds points of shape \(9, 6\)"),
    (pt([torch.zeros(9, 3)]), "it holds a list, not one tensor"),
    (pt({"points": torch.zeros(9, 3)}), "it holds a dict, not one tensor"),
    (numpy.zeros((0, 3)), "has 0 points and the encoder needs 6"),
    (numpy.zeros((5, 3)), "has 5 points and the encoder needs 6; give a denser cloud"),
    (numpy.full((9, 3), numpy.nan), "has coordinates that are not finite; leave those points out"),
    (numpy.full((9, 3), 1e300), "not finite"),
    (torch.tensor([[0.0, 1, 2]] * 8 + [[0, torch.inf, 0]]), "not finite"),
    (b"x y z\n1 2 3\n", r"12 bytes is no point cloud that can be read; give a \.npy, \.pt, \.ply or \.pcd file"),
    (b"<html>", "is no point cloud that can be read"),
    (b"PK\3\4 and no more", "is no torch file of points"),
    (b"\x80\2", "is no torch file of points"),
    (b"\x93NUMPY\1", "is no NumPy file of points"),
    (b"", "is empty"),
    ("no/such/cloud.ply", "there is no file 'no/such/cloud.ply'"),
    ([[1.0, 2, 3]] * 9, "an object of type list is no point cloud; give a path, URL, data: URI, bytes, numpy array"),
])  # fmt: skip
def test_what_is_no_point_cloud(source, message):
    with pytest.raises(MediaError, match=message):
        load_point_cloud(source, AS_IT_IS)


def test_points_in_one_place_have_no_size():
    same = torch.full((9, 3), 5.0)
    with pytest.raises(MediaError, match="Tensor has all of its 9 points in one place; give a cloud with an extent"):
        load_point_cloud(same, FIT)
    assert torch.equal(load_point_cloud(same, AS_IT_IS), same)


@pytest.mark.parametrize("module, data", [("plyfile", ply_header(0)), ("pypcd4", pcd_header(0))])
def test_missing_libraries_are_named(monkeypatch, module, data):
    monkeypatch.setitem(sys.modules, module, None)
    advice = rf'needs {module}, which is not installed; install it with pip install "adapter-llm\[point\]"$'
    with pytest.raises(MediaError, match=advice):
        load_point_cloud(data, AS_IT_IS)


def test_the_config_says_how_many_points_are_needed():
    cloud = torch.randn(40, 3)
    with pytest.raises(MediaError, match="has 40 points and the encoder needs 51"):
        load_point_cloud(cloud, PointStemConfig(groups=6, group_size=5, start=50, points=64))
    with pytest.raises(MediaError, match="the encoder needs 512"):
        load_point_cloud(cloud)
    assert point_module.load_point_cloud is load_point_cloud
