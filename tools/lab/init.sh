#!/bin/sh
# PID 1 of the lab: makes the machine complete, runs what was ordered, hands the results over, switches off.
# As PID 1 it takes in the VMMs whose starter has ended; dash reaps them while it waits.
export PATH=/opt/packages/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LC_ALL=C.UTF-8 TERM="${TERM:-linux}" PYTHONUNBUFFERED=1

mkdir -p /dev/pts /dev/shm /scratch/tmp /scratch/data /scratch/artefacts/new /scratch/artefacts/work
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
chmod 1777 /scratch/tmp
mount --bind /scratch/tmp /tmp

# Setup writes only times and drafts beside what it finds made.
mkdir -p /scratch/data/artefacts /var/lib/torpor
mount --bind /scratch/data /var/lib/torpor
mount -t overlay -o lowerdir=/opt/prepared/artefacts,upperdir=/scratch/artefacts/new,workdir=/scratch/artefacts/work \
    overlay /var/lib/torpor/artefacts
mkdir -p /scratch/tests/artefacts
mount --bind /opt/prepared/tests/artefacts /scratch/tests/artefacts
export TORPOR_TEST_CACHE=/scratch/tests TORPOR_TEST_DATA=/var/lib/torpor TORPOR_TEST_ACCELERATION=kvm
for program in /var/lib/torpor/artefacts/firecracker/*/firecracker; do
    export TORPOR_FIRECRACKER="$program"
done

hostname lab
ip link set lo up
modprobe -a kvm-amd loop tun veth nf_tables
for place in /usr/local/lib/python3*/dist-packages; do
    printf '/opt/packages\n/project/src\n' >"$place/lab.pth"
done
printf '#!/bin/sh\nexec python3 -m torpor.cli "$@"\n' >/usr/local/bin/torpor
chmod 755 /usr/local/bin/torpor

cd /project || exit 1
if grep -qw lab=shell /proc/cmdline; then
    echo "The lab. The project is in /project, Torpor is the command torpor, Ctrl-D ends it all."
    setsid --ctty bash <>/dev/ttyS0 >&0 2>&0
else
    mkdir /results
    python3 -m tools.lab.inside /results /dev/lab/results
fi
sync
echo o >/proc/sysrq-trigger
# No program can be read any more, and a PID 1 that ends is a panic.
while :; do :; done
