#!/bin/bash
# Runs the Makefile target `cluster-tests` with the Slurm of another Debian release:
#
#   tests/with_slurm.sh [--tree] RELEASE DIRECTORY PACKAGE...
#
# With --tree it only makes DIRECTORY, and runs nothing.
# DIRECTORY is a whole Debian of that release with PACKAGES, made once by mmdebstrap. The tests run in it, in mount and
# PID namespaces of their own: nothing that they mount or start outlives them. A copy of this project is in /src there,
# with its own virtual environment and SPANK plugin, so nothing of the checkout changes.
set -eu

repository=$(cd "$(dirname "$0")/.." && pwd)

main() {
    release=$1 tree=$2
    shift 2
    mkdir -p "$tree"
    exec 9>"$tree.lock"
    flock --nonblock 9 || fail "$tree: is in use"
    make_tree "$*"
    [ "$only_tree" = no ] || return 0
    copy_project
    # Process 1 is a shell: it reaps what loses its parent, and no Ctrl-C ends it before the tests have cleaned up.
    exec unshare --mount --pid --fork --kill-child -- "$0" --inside "$tree"
}

fail() {
    echo "with_slurm: $*" >&2
    exit 1
}

# Make the tree, unless it is there with the same packages.
make_tree() {
    [ "$(cat "$tree/packages" 2>/dev/null)" != "$1" ] || return 0
    command -v mmdebstrap >/dev/null || fail "needs mmdebstrap"
    mirror=$(debian_mirror)
    echo "making $tree"
    # Valid-Until: a mirror that lags behind, or a machine with another clock, is no reason to test nothing.
    rm -rf --one-file-system "$tree"
    unshare --mount --pid --fork --kill-child --mount-proc -- \
        mmdebstrap --quiet --variant=apt --aptopt='APT::Install-Recommends "false"' \
        --aptopt='Acquire::Check-Valid-Until "false"' --include="${1// /,}" \
        "$release" "$tree" ${mirror:+"$mirror"}
    echo "$1" >"$tree/packages"
}

# The mirror that this machine takes Debian from; none where it is no Debian, and mmdebstrap knows one.
debian_mirror() {
    command -v apt-get >/dev/null || return 0
    # shellcheck disable=SC2016 # apt-get's own words
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1
}

# Copy the project without what is made, and how this machine reaches the network.
copy_project() {
    mkdir -p "$tree/src"
    find "$tree/src" "$tree/tmp" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf --one-file-system {} +
    tar --create --directory="$repository" --exclude-vcs --exclude=./.venv --exclude=./build --exclude='*.[oa]' \
        --exclude='*.so' --exclude=__pycache__ --exclude='.*_cache' --exclude=.hypothesis . |
        tar --extract --directory="$tree/src"
    for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
        [ ! -f "$file" ] || install -D -m 0644 "$file" "$tree$file"
    done
}

# In the new namespaces: make the tree the root, so that whoever joins them lands in it too, and run the tests.
inside() {
    mount --bind "$1" "$1"
    cd "$1"
    mount --rbind /dev dev
    mount --rbind /sys sys
    mount -t proc proc proc
    mkdir -p .old
    pivot_root . .old
    cd /
    umount --lazy .old
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 CI=true
    unset MAKEFLAGS MAKELEVEL MFLAGS VIRTUAL_ENV PYTHONPATH
    make -C /src cluster-tests DEBIAN_PACKAGES= PYTHON=python3
}

only_tree=no
[ "$1" != --tree ] || { only_tree=yes; shift; }
if [ "$1" = --inside ]; then
    inside "$2"
else
    main "$@"
fi
