"""What can go wrong with a local cluster."""


class ClusterError(Exception):
    """The cluster could not be started, asked or cleared up; the message says why."""


class MissingRequirementsError(ClusterError):
    """This machine cannot run a local cluster."""


class AlreadyRunsError(ClusterError):
    """A cluster runs in that directory."""
