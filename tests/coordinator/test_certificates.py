from __future__ import annotations

import shutil
import stat
import subprocess

import pytest

from coordinator import certificates
from coordinator.certificates import CA, KEY, Authority, own_names, server_files
from protocol.errors import ConfigError

YEAR = 365 * 86400


def verify(ca, certificate, *options: str) -> subprocess.CompletedProcess[str]:
    """Ask OpenSSL itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    command = ["openssl", "verify", "-x509_strict", "-CAfile", str(ca), *options, str(certificate)]
    return subprocess.run(command, capture_output=True, text=True)


def test_openssl_agrees_for_each_name_at_any_time_from_1970_on(tmp_path):
    certificate, key = server_files(tmp_path, ["laptop.local", "192.0.2.7", "2001:db8::1"])
    ca = tmp_path / "ca" / CA
    for time in (0, 5 * YEAR, 56 * YEAR):  # A board without a clock, in 1970; and now or so.
        assert verify(ca, certificate, "-purpose", "sslserver", "-attime", str(time)).returncode == 0
    assert "expired" in verify(ca, certificate, "-attime", str(90 * YEAR)).stderr
    assert verify(ca, certificate, "-verify_hostname", "laptop.local").returncode == 0
    assert verify(ca, certificate, "-verify_ip", "192.0.2.7").returncode == 0
    assert verify(ca, certificate, "-verify_ip", "2001:db8::1").returncode == 0
    assert verify(ca, certificate, "-verify_hostname", "elsewhere").returncode != 0
    assert verify(ca, certificate, "-purpose", "sslclient").returncode != 0
    for path in (key, tmp_path / "ca" / KEY):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (tmp_path / "ca", tmp_path / "broker"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_devices_certificate_is_no_brokers(tmp_path):
    device = Authority.load_or_make(tmp_path).client("pi-1")
    device.write(tmp_path / "device.pem", tmp_path / "device.key")
    ca = tmp_path / "ca" / CA
    assert verify(ca, tmp_path / "device.pem", "-purpose", "sslclient").returncode == 0
    assert verify(ca, tmp_path / "device.pem", "-purpose", "sslserver").returncode != 0


def test_a_new_name_gives_a_new_certificate_of_the_same_authority(tmp_path):
    certificate, _ = server_files(tmp_path, ["a"])
    first, ca = certificate.read_bytes(), (tmp_path / "ca" / CA).read_bytes()
    server_files(tmp_path, ["a"])
    assert certificate.read_bytes() == first
    server_files(tmp_path, ["b"])
    assert certificates._covered(certificate) == {"a", "b"}
    second = certificate.read_bytes()
    server_files(tmp_path, ["a"], renew=True)
    assert certificate.read_bytes() not in (first, second)
    assert certificates._covered(certificate) == {"a", "b"}
    assert (tmp_path / "ca" / CA).read_bytes() == ca


def test_a_damaged_authority_is_not_replaced(tmp_path):
    """Devices know the one that was there."""
    server_files(tmp_path, ["a"])
    (tmp_path / "ca" / KEY).unlink()
    with pytest.raises(ConfigError, match=r"bring its ca\.pem to each device"):
        server_files(tmp_path, ["b"])
    (tmp_path / "ca" / CA).write_text("rubbish")
    with pytest.raises(ConfigError, match="cannot be used"):
        Authority.load_or_make(tmp_path)


def test_this_machine_is_reached_by_some_names():
    assert {"localhost", "127.0.0.1"} <= set(own_names())
