"""The systemd unit: what it promises stands in it, and systemd itself finds no fault."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

UNIT = Path(__file__).parents[2] / "config/systemd/vellumd.service"

PROMISED = {
    "Type": "notify",
    "NotifyAccess": "main",
    "WatchdogSec": "30",
    "Restart": "always",
    "KillMode": "mixed",
    "User": "vellumd",
    "StateDirectory": "vellumd",
    "CacheDirectory": "vellumd",
    "DevicePolicy": "closed",
    "OOMPolicy": "continue",
    "MemoryMax": "90%",
    "LimitNOFILE": "65536",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "ProtectSystem": "strict",
    "PrivateTmp": "yes",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX AF_NETLINK",
}


def keys() -> list[tuple[str, str, str]]:
    """Section, key and value of every line."""
    section, found = "", []
    for line in UNIT.read_text("ascii").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            found.append((section, key, value))
    return found


def test_what_it_promises() -> None:
    """Each promised key stands in [Service], once."""
    service = [(key, value) for section, key, value in keys() if section == "Service"]
    assert {key: value for key, value in service if key in PROMISED} == PROMISED
    once = [key for key, _ in service if key != "DeviceAllow"]
    assert len(once) == len(set(once))


def test_the_card_can_be_reached() -> None:
    """Every kind of an NVIDIA card's devices may be read and written, and nothing else."""
    allowed = {value for _, key, value in keys() if key == "DeviceAllow"}
    assert {"char-nvidia-frontend rw", "char-nvidia-uvm rw", "char-nvidiactl rw"} <= allowed
    assert all(value.startswith("char-nvidia") for value in allowed)


def test_it_starts_what_exists() -> None:
    """The command of ExecStart is one that vellumd understands."""
    from vellumd.cli import main

    (command,) = (value.split() for _, key, value in keys() if key == "ExecStart")
    words, settings = main.split_settings(command[1:])
    parser = main.command_parser(words[0], main.load_command(words[0]))
    assert parser.parse_args(words[1:]).config == Path("/etc/vellumd/vellumd.toml")
    assert settings == []


def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    """`systemd-analyze verify` is silent and the sandbox's exposure is rated below 3 of 10.

    Where systemd is not installed, its keys are compared with a list of those it knows.
    """
    tool = shutil.which("systemd-analyze")
    if tool is None:
        assert {key for _, key, _ in keys()} <= KNOWN
        return
    unit = tmp_path / "vellumd.service"
    lines = UNIT.read_text("ascii").splitlines()
    started = [f"ExecStart={sys.executable}" if ln.startswith("ExecStart=") else ln for ln in lines]
    unit.write_text("\n".join(started) + "\n")
    said = subprocess.run([tool, "verify", unit], capture_output=True, text=True, timeout=60)
    assert (said.returncode, said.stdout + said.stderr) == (0, "")
    command = [tool, "security", "--offline=true", "--threshold=30", unit]
    rated = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert rated.returncode == 0, rated.stdout[-200:] + rated.stderr


KNOWN = {
    "AmbientCapabilities", "After", "CacheDirectory", "CapabilityBoundingSet",
    "ConfigurationDirectory", "Description", "DeviceAllow", "DevicePolicy", "ExecStart", "KillMode",
    "LimitNOFILE", "LockPersonality", "MemoryMax", "NoNewPrivileges", "NotifyAccess", "OOMPolicy",
    "PrivateTmp", "ProtectClock", "ProtectControlGroups", "ProtectHome", "ProtectHostname",
    "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "ProtectProc",
    "ProtectSystem", "RemoveIPC", "Restart", "RestartPreventExitStatus", "RestartSec",
    "RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID",
    "StartLimitIntervalSec", "StateDirectory", "StateDirectoryMode", "SystemCallArchitectures",
    "SystemCallErrorNumber", "SystemCallFilter", "TasksMax", "TimeoutStartSec", "TimeoutStopSec",
    "Type", "UMask", "User", "WantedBy", "Wants", "WatchdogSec", "WorkingDirectory",
}  # fmt: skip
"""Keys of systemd.unit(5), systemd.service(5), systemd.exec(5) that the unit uses."""


def test_the_list_of_keys_is_the_units() -> None:
    """What stands in for systemd knows every key of the unit, and no other."""
    assert {key for _, key, _ in keys()} == KNOWN
