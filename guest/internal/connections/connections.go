// Package connections ends the TCP connections of a guest's earlier life after a restore.
//
// Whatever reached out of the guest has no other end any more; its owner sees ECONNABORTED (spec 6.2). Connections
// between two sockets inside the guest go on. A connection that came in through the gateway looks like one of those,
// because its source was translated to loopback, but its other end is no socket of this guest.
package connections

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"torpor/guest/internal/netlink"
)

// Numbers of linux/sock_diag.h and linux/inet_diag.h.
const (
	byFamily = 20 // SOCK_DIAG_BY_FAMILY
	destroy  = 21 // SOCK_DESTROY

	requestSize = 56 // struct inet_diag_req_v2
	entrySize   = 72 // struct inet_diag_msg
	idSize      = 48 // struct inet_diag_sockid

	listening = 10 // TCP_LISTEN
	allStates = 0xfff &^ (1 << listening)
)

type socket struct {
	family        byte
	local, remote netip.AddrPort
	id            [idSize]byte
	inode         uint32 // 0 when no process holds it any more
}

// Drop destroys every TCP connection that leaves the guest or came into it, except those keep wants, and says how many.
// It sees the calling thread's network namespace.
func Drop(keep func(local netip.AddrPort) bool) (int, error) {
	conn, err := netlink.Dial(netlink.SockDiag)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	sockets, err := listAll(conn)
	if err != nil {
		return 0, err
	}
	dropped := 0
	var failed error
	for _, doomed := range foreign(sockets) {
		if keep(doomed.local) {
			continue
		}
		err := conn.Do(destroy, 0, request(doomed.family, 0, &doomed.id))
		switch {
		case err == nil:
			dropped++
		case errors.Is(err, syscall.ENOENT): // it ended by itself in the meantime
		default:
			failed = fmt.Errorf("drop connection %s to %s: %w", doomed.local, doomed.remote, err)
		}
	}
	return dropped, failed
}

// listAll lists the TCP connections of both families.
func listAll(conn *netlink.Conn) ([]socket, error) {
	var sockets []socket
	for _, family := range []byte{syscall.AF_INET, syscall.AF_INET6} {
		listed, err := list(conn, family)
		if err != nil {
			return nil, fmt.Errorf("list TCP connections: %w", err)
		}
		sockets = append(sockets, listed...)
	}
	return sockets, nil
}

func list(conn *netlink.Conn, family byte) ([]socket, error) {
	var sockets []socket
	err := conn.Dump(byFamily, request(family, allStates, nil), func(entry []byte) {
		if len(entry) >= entrySize {
			sockets = append(sockets, parse(entry))
		}
	})
	return sockets, err
}

// request packs struct inet_diag_req_v2: for a listing with states, for one socket with its id.
func request(family byte, states uint32, id *[idSize]byte) []byte {
	packed := make([]byte, requestSize)
	packed[0] = family
	packed[1] = syscall.IPPROTO_TCP
	binary.NativeEndian.PutUint32(packed[4:], states)
	if id != nil {
		copy(packed[8:], id[:])
	}
	return packed
}

// parse reads struct inet_diag_msg: family, three bytes of state, the id (ports, addresses, device, cookie), …, inode.
func parse(entry []byte) socket {
	found := socket{family: entry[0]}
	copy(found.id[:], entry[4:4+idSize])
	found.inode = binary.NativeEndian.Uint32(entry[68:])
	width := 4
	if found.family == syscall.AF_INET6 {
		width = 16
	}
	local, _ := netip.AddrFromSlice(entry[8 : 8+width])
	remote, _ := netip.AddrFromSlice(entry[24 : 24+width])
	found.local = netip.AddrPortFrom(local.Unmap(), binary.BigEndian.Uint16(entry[4:]))
	found.remote = netip.AddrPortFrom(remote.Unmap(), binary.BigEndian.Uint16(entry[6:]))
	return found
}

// foreign keeps the sockets whose other end is no socket of this guest.
func foreign(sockets []socket) []socket {
	type pair struct{ local, remote netip.AddrPort }
	known := make(map[pair]bool, len(sockets))
	for _, one := range sockets {
		known[pair{one.local, one.remote}] = true
	}
	var out []socket
	for _, one := range sockets {
		if !known[pair{one.remote, one.local}] {
			out = append(out, one)
		}
	}
	return out
}
