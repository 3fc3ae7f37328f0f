package connections

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"torpor/guest/internal/kernel"
	"torpor/guest/internal/netlink"
)

// closePoll is how often Close looks whether the owners have closed their ends.
const closePoll = 5 * time.Millisecond

// Close lets the processes of a cgroup read the end of connections that came in through the gateway, as if the client
// had hung up, and waits until they have closed their ends too. It says how many are still open after that time.
//
// Connections that only a restore ends cost their owners an error at a moment when somebody waits for them; a server's
// traceback for a connection nobody misses is longer than the answer.
func Close(cgroup string, within time.Duration) (int, error) {
	conn, err := netlink.Dial(netlink.SockDiag)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	deadline := time.Now().Add(within)
	told := make(map[uint32]bool)
	for {
		open, err := incoming(conn)
		if err != nil {
			return 0, err
		}
		fresh := make(map[string]bool)
		for inode := range open {
			if !told[inode] {
				told[inode] = true
				fresh["socket:["+strconv.FormatUint(uint64(inode), 10)+"]"] = true
			}
		}
		if len(fresh) > 0 {
			hangUp(processesOf(cgroup), fresh)
		}
		if len(open) == 0 || time.Now().After(deadline) {
			return len(open), nil
		}
		time.Sleep(closePoll)
	}
}

// incoming lists the inodes of sockets that the gateway's traffic arrived at and that their owners have not closed.
func incoming(conn *netlink.Conn) (map[uint32]bool, error) {
	sockets, err := listAll(conn)
	if err != nil {
		return nil, err
	}
	inodes := make(map[uint32]bool)
	for _, one := range foreign(sockets) {
		if one.inode != 0 && one.local.Addr().IsLoopback() && one.remote.Addr().IsLoopback() {
			inodes[one.inode] = true
		}
	}
	return inodes, nil
}

// hangUp ends the receiving side of the sockets of these names, whichever of the processes hold them.
func hangUp(processes []string, names map[string]bool) {
	for _, process := range processes {
		folder := "/proc/" + process + "/fd/"
		descriptors, _ := namesIn(folder) // a process that ended meanwhile needs nothing
		for _, descriptor := range descriptors {
			if target, err := os.Readlink(folder + descriptor); err == nil && names[target] {
				shutDown(process, descriptor)
			}
		}
	}
}

// processesOf lists a cgroup's processes and those of the cgroups in it.
func processesOf(cgroup string) []string {
	content, _ := os.ReadFile(cgroup + "/cgroup.procs")
	processes := strings.Fields(string(content))
	directory, err := os.Open(cgroup)
	if err != nil {
		return processes
	}
	defer directory.Close()
	entries, _ := directory.ReadDir(-1)
	for _, entry := range entries {
		if entry.IsDir() {
			processes = append(processes, processesOf(cgroup+"/"+entry.Name())...)
		}
	}
	return processes
}

func namesIn(folder string) ([]string, error) {
	directory, err := os.Open(folder)
	if err != nil {
		return nil, err
	}
	defer directory.Close()
	return directory.Readdirnames(-1)
}

// shutDown works on the socket itself through a copy of the descriptor. A process that ended meanwhile needs nothing.
func shutDown(process, descriptor string) {
	id, _ := strconv.Atoi(process)
	number, _ := strconv.Atoi(descriptor)
	owner, err := kernel.PidfdOpen(id)
	if err != nil {
		return
	}
	defer syscall.Close(owner)
	copied, err := kernel.PidfdGetfd(owner, number)
	if err != nil {
		return
	}
	defer syscall.Close(copied)
	syscall.Shutdown(copied, syscall.SHUT_RD)
}
