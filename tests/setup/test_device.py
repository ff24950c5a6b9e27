"""A GPU that cannot be used is one sentence and the CPU, never a stack trace; no GPU is nothing to speak of."""

import warnings

import pytest
import torch

from adapter_llm import device
from adapter_llm.device import choose_device, choose_dtype

OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://example.org Alternatively, install another torch."
)
UNKNOWN = (
    "CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing env variable "
    "CUDA_VISIBLE_DEVICES after program start. Setting the available devices to be zero."
)
UNSUPPORTED = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() that "
    "might have already set an error? Error 804: forward compatibility was attempted on non supported HW"
)
NONE = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver"
KERNEL = "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be\nelsewhere"
NEEDS = "torch {torch} needs one for CUDA 13.0 or newer; going on with the CPU\n"


@pytest.fixture
def cuda(monkeypatch):
    """A torch made for CUDA, on a machine whose CUDA fails with the given message, or works if there is none."""

    def simulate(failure=None, allocation=None, present=True):
        def is_available():
            if failure:
                warnings.warn(f"CUDA initialization: {failure} (Triggered internally at x.cpp:119.)", stacklevel=1)
            return not failure and present

        def init():
            raise RuntimeError(failure or "No CUDA GPUs are available")

        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", is_available)
        monkeypatch.setattr(torch.cuda, "init", init)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(device, "_allocation_problem", lambda chosen: allocation)

    return simulate


@pytest.mark.parametrize("failure, expected", [
    (OLD, "the NVIDIA driver is too old: it is for CUDA 11.4 and " + NEEDS),
    (UNKNOWN, "the GPU or its driver does not work (CUDA unknown error): reinstall the driver and restart; " + NEEDS),
    (UNSUPPORTED, "the GPU or its driver does not work (Error 804: forward compatibility was attempted on non "
     "supported HW): reinstall the driver and restart; " + NEEDS),
])  # fmt: skip
@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:1"])
def test_a_driver_that_does_not_work_is_one_sentence(cuda, capfd, failure, expected, name):
    cuda(failure)
    assert choose_device(name) == torch.device("cpu")
    assert choose_device(name) == torch.device("cpu")  # torch itself gives its reason only once
    out, err = capfd.readouterr()
    assert out == "" and err == 2 * expected.format(torch=torch.__version__)


@pytest.mark.parametrize("failure", [NONE, None])
def test_no_gpu_is_silent_unless_one_was_asked_for(cuda, capfd, failure):
    cuda(failure, present=False)
    assert choose_device() == torch.device("cpu")
    assert capfd.readouterr() == ("", "")
    assert choose_device("cuda") == torch.device("cpu")
    message = f"no NVIDIA GPU was found by torch {torch.__version__}, and cuda needs one; going on with the CPU\n"
    assert capfd.readouterr() == ("", message)


@pytest.mark.parametrize("name", ["auto", "cuda"])
@pytest.mark.parametrize("allocation, expected", [
    (KERNEL, "holds no code for this GPU, which is too old or too new for it; going on with the CPU\n"),
    ("CUDA out of memory. Tried to allocate 2 MiB", "the GPU has no memory left, and needs some to be freed by other "
     "programs; going on with the CPU\n"),
    ("CUDA error: invalid device ordinal\nCUDA kernel errors might", "(CUDA error: invalid device ordinal): "),
])  # fmt: skip
def test_a_gpu_that_cannot_compute_is_one_sentence(cuda, capfd, name, allocation, expected):
    cuda(allocation=allocation)
    assert choose_device(name) == torch.device("cpu")
    err = capfd.readouterr().err
    assert expected.replace("CUDA error: ", "") in err and err.count("\n") == 1


def test_a_failure_of_the_question_itself_is_a_sentence(cuda, capfd, monkeypatch):
    cuda()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: (_ for _ in ()).throw(RuntimeError("libcuda is broken")))
    assert choose_device() == torch.device("cpu")
    assert "does not work (libcuda is broken)" in capfd.readouterr().err


@pytest.mark.parametrize("name, expected", [("auto", "cuda"), ("cuda", "cuda"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_a_gpu_that_works_is_taken(cuda, capfd, name, expected):
    cuda()
    assert choose_device(name) == torch.device(expected)
    assert capfd.readouterr() == ("", "")


def test_apples_gpu_is_taken_when_there_is_no_other(cuda, capfd, monkeypatch):
    cuda(NONE)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device() == choose_device("mps") == torch.device("mps")
    monkeypatch.setattr(device, "_allocation_problem", lambda chosen: "broken")
    assert choose_device() == torch.device("cpu")
    assert capfd.readouterr().err == ""
    assert choose_device("mps") == torch.device("cpu")
    assert "no usable Apple GPU was found" in capfd.readouterr().err


def test_this_machine_is_silent(capfd):
    assert choose_device("cpu") == torch.device("cpu")
    choose_device()
    assert capfd.readouterr().out == ""


def test_the_allocation_test_is_real():
    assert device._allocation_problem(torch.device("cpu")) is None
    assert device._allocation_problem(torch.device("meta"))


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cpu:0", "CPU"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="it must be one of auto, cpu, cuda, mps"):
        choose_device(name)


@pytest.mark.parametrize("name, expected", [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_dtype_by_name(name, expected):
    assert choose_dtype(name, torch.device("cpu")) == expected


@pytest.mark.parametrize("bf16, expected", [(True, torch.bfloat16), (False, torch.float16)])
def test_automatic_dtype_of_gpus(monkeypatch, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16 or including_emulation)
    assert choose_dtype("auto", torch.device("cuda")) == expected
    assert choose_dtype("float16", torch.device("cuda")) == torch.float16
    assert choose_dtype("auto", torch.device("mps")) == torch.float16


@pytest.mark.parametrize("avx512, amx, expected", [
    (True, False, torch.bfloat16), (False, True, torch.bfloat16), (False, False, torch.float32),
    (None, None, torch.float32),
])  # fmt: skip
def test_automatic_dtype_of_processors(monkeypatch, avx512, amx, expected):
    """None: a torch that has no such question."""
    for name, answer in (("_is_avx512_bf16_supported", avx512), ("_is_amx_tile_supported", amx)):
        monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
        if answer is None:
            monkeypatch.delattr(torch.cpu, name)
    assert choose_dtype("auto", torch.device("cpu")) == expected


def test_float16_on_the_processor_is_refused_with_a_reason():
    with pytest.raises(ValueError, match="float16 is slower than float32 on the CPU"):
        choose_dtype("float16", torch.device("cpu"))
    with pytest.raises(ValueError, match="it must be one of auto, float32, bfloat16, float16"):
        choose_dtype("int8", torch.device("cpu"))
