package server

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
)

// doorkeeper lets connections of one peer in and knows the open ones.
type doorkeeper struct {
	net.Listener
	peer netip.Addr

	mu   sync.Mutex
	open map[*knownConn]struct{}
}

// Listen opens the agent's door for one peer. That no program of the guest can pretend to be that peer is the packet
// rules' concern (network).
func Listen(ctx context.Context, address netip.AddrPort, peer netip.Addr) (net.Listener, error) {
	config := net.ListenConfig{KeepAlive: -1} // probes would keep an idle guest busy
	listener, err := config.Listen(ctx, "tcp4", address.String())
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return &doorkeeper{Listener: listener, peer: peer, open: map[*knownConn]struct{}{}}, nil
}

func (d *doorkeeper) Accept() (net.Conn, error) {
	for {
		conn, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		remote, err := netip.ParseAddrPort(conn.RemoteAddr().String())
		if err != nil || remote.Addr() != d.peer {
			conn.Close()
			continue
		}
		known := &knownConn{Conn: conn, keeper: d}
		d.mu.Lock()
		d.open[known] = struct{}{}
		d.mu.Unlock()
		return known, nil
	}
}

// closeOthers ends every connection but one, at once and without waiting for its other end.
func (d *doorkeeper) closeOthers(spared net.Conn) {
	d.mu.Lock()
	var doomed []*knownConn
	for conn := range d.open {
		if conn != spared {
			doomed = append(doomed, conn)
		}
	}
	d.mu.Unlock()
	for _, conn := range doomed {
		if tcp, isTCP := conn.Conn.(*net.TCPConn); isTCP {
			tcp.SetLinger(0)
		}
		conn.Close()
	}
}

type knownConn struct {
	net.Conn
	keeper *doorkeeper
}

func (c *knownConn) Close() error {
	c.keeper.mu.Lock()
	delete(c.keeper.open, c)
	c.keeper.mu.Unlock()
	return c.Conn.Close()
}
