package connections

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"torpor/guest/internal/kernel"
	"torpor/guest/internal/netlink"
)

// closePoll is how often Close looks whether the owners have closed their ends.
const closePoll = 5 * time.Millisecond

// Close lets the owners of connections that came in through the gateway read the end of them, as if the client had hung
// up, and waits until they have closed their ends too. It says how many are still open after that time.
//
// Connections that only a restore ends cost their owners an error at a moment when somebody waits for them; a server's
// traceback for a connection nobody misses is longer than the answer.
func Close(within time.Duration) (int, error) {
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
			hangUp(fresh)
		}
		if len(open) == 0 || time.Now().After(deadline) {
			return len(open), nil
		}
		time.Sleep(closePoll)
	}
}

// incoming lists the inodes of sockets that the gateway's traffic arrived at and that their owners have not closed.
func incoming(conn *netlink.Conn) (map[uint32]bool, error) {
	var sockets []socket
	for _, family := range []byte{syscall.AF_INET, syscall.AF_INET6} {
		listed, err := list(conn, family)
		if err != nil {
			return nil, err
		}
		sockets = append(sockets, listed...)
	}
	inodes := make(map[uint32]bool)
	for _, one := range foreign(sockets) {
		if one.inode != 0 && one.local.Addr().IsLoopback() && one.remote.Addr().IsLoopback() {
			inodes[one.inode] = true
		}
	}
	return inodes, nil
}

// hangUp ends the receiving side of the sockets of these names, whichever processes hold them.
func hangUp(names map[string]bool) {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil || !names[target] {
			continue // it ended meanwhile, or is no socket of these
		}
		parts := strings.Split(link, "/")
		process, _ := strconv.Atoi(parts[2])
		descriptor, _ := strconv.Atoi(parts[4])
		shutDown(process, descriptor)
	}
}

// shutDown works on the socket itself through a copy of the descriptor. A process that ended meanwhile needs nothing.
func shutDown(process, descriptor int) {
	owner, err := kernel.PidfdOpen(process)
	if err != nil {
		return
	}
	defer syscall.Close(owner)
	copied, err := kernel.PidfdGetfd(owner, descriptor)
	if err != nil {
		return
	}
	defer syscall.Close(copied)
	syscall.Shutdown(copied, syscall.SHUT_RD)
}
