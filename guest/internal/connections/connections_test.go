package connections

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
)

func pair(local, remote string) socket {
	return socket{local: netip.MustParseAddrPort(local), remote: netip.MustParseAddrPort(remote)}
}

func TestOnlyConnectionsWithBothEndsHereAreKept(t *testing.T) {
	got := foreign([]socket{
		pair("127.0.0.1:80", "127.0.0.1:5000"), // these two are one connection within the guest
		pair("127.0.0.1:5000", "127.0.0.1:80"),
		pair("127.0.0.1:80", "127.0.0.1:6000"),   // came through the gateway: nobody here has port 6000
		pair("100.64.0.2:7000", "192.0.2.1:443"), // went out
		pair("100.64.0.2:1", "100.64.0.2:2"),     // and these
		pair("100.64.0.2:2", "100.64.0.2:1"),
	})
	if len(got) != 2 || got[0].remote.Port() != 6000 || got[1].remote.Port() != 443 {
		t.Fatalf("%v", got)
	}
}

func TestAListingIsRead(t *testing.T) {
	entry := make([]byte, entrySize)
	entry[0] = syscall.AF_INET6
	copy(entry[4:], []byte{0, 80, 0x13, 0x88})
	mapped := netip.MustParseAddr("::ffff:127.0.0.1").As16()
	copy(entry[8:], mapped[:])
	copy(entry[24:], mapped[:])
	got := parse(entry)
	if got.local.String() != "127.0.0.1:80" || got.remote.String() != "127.0.0.1:5000" {
		t.Fatalf("%v to %v", got.local, got.remote)
	}
}

// In a network namespace of its own every connection has both ends in it: Drop must spare them and find no fault.
func TestLoopbackConnectionsLiveOn(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and the namespace with it
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		t.Skip(err)
	}
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(socket)
	if err := bringUp(socket, "lo"); err != nil {
		t.Fatal(err)
	}
	client, server := connected(t)
	dropped, err := Drop(func(netip.AddrPort) bool { return false })
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EPROTONOSUPPORT) {
		t.Skipf("this kernel has no inet_diag: %v", err)
	}
	if dropped != 0 || err != nil {
		t.Fatal(dropped, err)
	}
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

// connected gives both ends of a TCP connection over loopback, closed with the test.
func connected(t *testing.T) (client, server net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err = net.Dial("tcp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	server, err = listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}
