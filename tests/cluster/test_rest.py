"""slurmrestd runs no plugins: a job that it submits asks for datasets all the same."""

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.support import Make, read_job_environment, until
from tests.local_cluster import LocalCluster
from tests.local_cluster.requirements import slurm_release

pytestmark = [pytest.mark.cluster, pytest.mark.root]

RELEASE = slurm_release()
# The newest that each release has; data_parser v0.0.40 and later know "spank_environment".
API = {(22, 5): "v0.0.38", (24, 11): "v0.0.41", (26, 5): "v0.0.44"}.get(RELEASE, "v0.0.41")
USER = "nobody"

SUBMIT = """\
import socket, sys
path, api, body = sys.argv[1:]
rest = socket.socket(socket.AF_UNIX)
rest.connect(path)
body = body.encode()
head = f"POST /slurm/{api}/job/submit HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n"
rest.sendall(f"{head}Content-Type: application/json\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n".encode() + body)
print(rest.makefile().read().partition("\\n\\n")[2])
"""


@pytest.fixture(scope="module")
def submit(cluster: LocalCluster) -> Iterator[Callable[..., int]]:
    """Submit a job through slurmrestd: `submit(**fields)`."""
    work = cluster.layout.work_dir
    rest, program = work / "rest.sock", work / "submit.py"
    program.write_text(SUBMIT)
    program.chmod(0o644)
    # It asks munged at the usual place, whatever slurm.conf says: one of its own.
    munge = f"mkdir -p /run/munge && mount -t tmpfs -o mode=0755 none /run/munge && ln -s {cluster.layout.munge_socket}"
    api = ["-s", f"openapi/{API}"] if RELEASE < (23, 2) else ["-s", "slurmctld", "-d", API]
    run = ["setpriv", f"--reuid={USER}", "--regid=nogroup", "--clear-groups"]
    run += ["slurmrestd", "-a", "rest_auth/local", *api, f"unix:{rest}"]
    script = f"{munge} /run/munge/munge.socket.2 && exec {shlex.join(run)}"
    cluster.spawn("slurmrestd", ["unshare", "--mount", "sh", "-c", script])
    until(rest.exists, "slurmrestd listens", 30)

    def submit_one(**fields: Any) -> int:
        variables = {"PATH": "/usr/bin:/bin"}
        environment = variables if RELEASE < (23, 2) else [f"{name}={value}" for name, value in variables.items()]
        job = {"name": "rest", "environment": environment, "current_working_directory": str(work), **fields}
        body = {"script": "#!/bin/sh\nenv | grep ^SCRATCH_\n", "job": {**job, "standard_output": f"{work}/rest-%j.out"}}
        words = ["/usr/bin/python3", str(program), str(rest), API, json.dumps(body)]
        said = cluster.run(words, user=USER).stdout
        found = json.loads(said[said.index("{") : said.rindex("}") + 1])
        assert found.get("job_id"), said
        return int(found["job_id"])

    yield submit_one


REQUESTS = [pytest.param(lambda name: {"comment": f"datasets={name}"}, id="comment")]
if RELEASE >= (24, 5):
    REQUESTS.append(pytest.param(lambda name: {"spank_environment": [f"DATASETS={name}"]}, id="spank_environment"))


@pytest.mark.parametrize("fields", REQUESTS)
def test_a_job_that_comes_by_slurmrestd_finds_its_datasets(
    cluster: LocalCluster, make: Make, submit: Callable[..., int], fields: Callable[[str], dict[str, Any]]
) -> None:
    d = make()
    job = submit(**fields(d.name))
    assert cluster.wait_job(job).state == "COMPLETED"
    found = read_job_environment(Path(cluster.jobs(job)[0].output).read_text())
    assert found["SCRATCH_DATASETS_STATE"] == f"{d.name}:cached"
    assert found["SCRATCH_DATASETS_JOB"] == str(job)
