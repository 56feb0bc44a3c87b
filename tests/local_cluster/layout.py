"""Where everything of a local cluster is: one frozen value, and the paths that follow from it. No I/O here."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

HEAD: Final = "head"

# Configuration keys whose directory every node has for itself -> its name below the node's directory.
NODE_DIRECTORIES: Final = {
    "cache_dir": "cache",
    "mount_dir": "datasets",
    "state_dir": "state",
    "run_dir": "run",
}

# sockaddr_un.sun_path is 108 bytes with its final zero: unix(7).
MAX_SOCKET_PATH_BYTES: Final = 107

CLIENT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Layout:
    """One cluster: its directory, ports and options.

    Args:
        directory: everything of the cluster is below it, and nothing is written elsewhere.
        node_names: `n1`, `n2`, ...; all on the loopback address, each with a port of its own.
        repository: the checkout whose stubs and SPANK plugin are wired in.
        bin_dir: directory of `scratch-slurmd` and the other scripts.
        settings: scratch-slurm's configuration, complete; the same on every node.
        slurm_options: lines of slurm.conf that replace or follow the generated ones.
        files: more configuration files beside slurm.conf, name -> text.
        slurm_runs_hooks: Prolog= and Epilog= of slurm.conf name the hooks; otherwise the SPANK plugin runs them.
        remove_directory: at the end, remove the directory too and not only what is in it.
        keep: at the end, leave all files for a look at the logs.
    """

    directory: Path
    node_names: tuple[str, ...]
    controller_port: int
    node_ports: tuple[int, ...]
    cpus_per_node: int
    repository: Path
    bin_dir: Path
    settings: Mapping[str, Any]
    slurm_options: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    slurm_runs_hooks: bool = False
    remove_directory: bool = True
    keep: bool = False

    @property
    def slurm_conf(self) -> Path:
        return self.directory / "slurm.conf"

    @property
    def config(self) -> Path:
        """scratch-slurm's own configuration."""
        return self.directory / "config.yaml"

    @property
    def state_file(self) -> Path:
        return self.directory / "cluster.json"

    @property
    def log_dir(self) -> Path:
        return self.directory / "log"

    @property
    def work_dir(self) -> Path:
        """Where client commands start and batch output lands; every user may write here."""
        return self.directory / "work"

    @property
    def munge_dir(self) -> Path:
        return self.directory / "munge"

    @property
    def munge_socket(self) -> Path:
        return self.munge_dir / "socket"

    @property
    def daemon_script(self) -> Path:
        return self.bin_dir / "scratch-slurmd"

    @property
    def spank_plugin(self) -> Path:
        return self.repository / "spank" / "scratch_slurm.so"

    @property
    def job_submit_script(self) -> Path:
        return self.repository / "spank" / "scratch_slurm.lua"

    @property
    def source_dir(self) -> Path:
        return Path(self.settings["source_dir"])

    def log(self, process: str) -> Path:
        return self.log_dir / f"{process}.log"

    def machine_dir(self, machine: str) -> Path:
        """The own directory of a node, or of the head."""
        return self.directory / "nodes" / machine

    def control_socket(self, machine: str) -> Path:
        return self.machine_dir(machine) / "control.sock"

    def node_path(self, node: str, common: Path | str) -> Path:
        """Where the host sees what `node` sees at the path `common` (without the mounts made there)."""
        path = Path(common)
        for shared, own in self.binds(node):
            if path.is_relative_to(shared):
                return own / path.relative_to(shared)
        return path

    def binds(self, node: str) -> list[tuple[Path, Path]]:
        """The common paths, and the node's own directories that are bind-mounted over them."""
        own = self.machine_dir(node)
        return [(Path(self.settings[key]), own / name) for key, name in NODE_DIRECTORIES.items()]

    def daemon_socket(self, node: str) -> Path:
        return self.machine_dir(node) / "run" / "daemon.sock"

    def sockets(self) -> list[Path]:
        machines = (HEAD, *self.node_names)
        return [
            self.munge_socket,
            *(self.control_socket(machine) for machine in machines),
            *(self.daemon_socket(node) for node in self.node_names),
        ]

    def client_environment(self) -> dict[str, str]:
        """The clean environment of client commands: nothing of the caller's reaches the jobs."""
        return {
            "PATH": f"{self.bin_dir}:{CLIENT_PATH}",
            "LANG": "C.UTF-8",
            "SLURM_CONF": str(self.slurm_conf),
        }

    def daemon_environment(self) -> dict[str, str]:
        return {
            "PATH": CLIENT_PATH,
            "LANG": "C.UTF-8",
            "SLURM_CONF": str(self.slurm_conf),
            "SCRATCH_SLURM_CONFIG": str(self.config),
        }


def default_settings(directory: Path) -> dict[str, Any]:
    """Configure scratch-slurm for a cluster in `directory`: small, and quick to react."""
    return {
        "source_dir": str(directory / "source"),
        **{key: str(directory / name) for key, name in NODE_DIRECTORIES.items()},
        "capacity": "1 GB",
        "reserve": 0,
        "interval": 1,
        "cache_on_any_file_system": True,
    }


def merge_settings(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `changes` over `base`, section by section."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge_settings(old, value) if both else value  # type: ignore[arg-type]
    return merged


def format_layout(layout: Layout) -> str:
    return json.dumps(asdict(layout), default=str, indent=2) + "\n"


def parse_layout(text: str) -> Layout:
    """Read what `format_layout` wrote."""
    raw = json.loads(text)
    for key in ("directory", "repository", "bin_dir"):
        raw[key] = Path(raw[key])
    for key in ("node_names", "node_ports"):
        raw[key] = tuple(raw[key])
    return Layout(**raw)
