import pytest
import torch
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

from rp_lib.utils import device as devices
from rp_lib.utils.device import autocast_dtype, computing, evaluating, in_float32, pick_device
from rp_lib.utils.errors import RPLibError, UnknownName

CPU = torch.device("cpu")


def test_pick(monkeypatch: pytest.MonkeyPatch):
    assert pick_device("cpu") == CPU
    assert pick_device().type in ("cpu", "cuda", "mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == "cuda"


@pytest.mark.parametrize("name", ["gpu", "cuda:77", "tpu9", ""])
def test_a_device_that_is_not_there(name: str):
    with pytest.raises(RPLibError, match=r"cannot be used here; take auto or cpu"):
        pick_device(name)


def test_precision(monkeypatch: pytest.MonkeyPatch):
    assert autocast_dtype(CPU, "float32") is None
    assert autocast_dtype(CPU, "bfloat16") is torch.bfloat16
    assert autocast_dtype(CPU, "float16") is torch.float16
    with pytest.raises(UnknownName, match="did you mean bfloat16"):
        autocast_dtype(CPU, "bfloat")
    for avx, amx in ((True, False), (False, True), (False, False)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert autocast_dtype(CPU) is (torch.bfloat16 if avx or amx else None)
    assert autocast_dtype(torch.device("mps")) is None
    for there, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        # Emulated, bfloat16 is slower than float16.
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda there=there, including_emulation=True: there or including_emulation
        )
        assert autocast_dtype(torch.device("cuda")) is dtype
        assert autocast_dtype(torch.device("cuda", 1), "float32") is None


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices.distributed, "local_device", lambda: torch.device("cuda", 3))
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 3)
    assert pick_device("cpu") == CPU
    monkeypatch.setattr(devices.distributed, "local_device", lambda: CPU)  # several processes on CPUs
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == CPU


def test_computing():
    x = torch.ones(2, 2)
    with computing(CPU):
        assert _cur_sdpa_kernel_backends() == [SDPBackend.MATH]
        assert (x @ x).dtype == torch.float32
    assert _cur_sdpa_kernel_backends() != [SDPBackend.MATH]
    with computing(CPU, torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with computing(CPU):  # an inner block without a dtype leaves the outer one alone
            assert (x @ x).dtype == torch.bfloat16
        with in_float32(CPU):
            assert (x @ x).dtype == torch.float32


def test_evaluating():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with evaluating():
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
    assert evaluating()(lambda: torch.is_autocast_enabled("cpu"))() is False
