package connections

import (
	"io"
	"net"
	"os"
	"strconv"
	"testing"
)

func TestAnOwnerReadsTheEndOfAConnectionThatIsHungUp(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("tcp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	raw, err := server.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var name string
	raw.Control(func(fd uintptr) {
		name, err = os.Readlink("/proc/self/fd/" + strconv.Itoa(int(fd)))
	})
	if err != nil {
		t.Fatal(err)
	}
	hangUp(map[string]bool{name: true})
	if _, err := server.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("the owner read %v", err)
	}
	if _, err := server.Write([]byte("still")); err != nil { // an answer under way still goes out
		t.Fatal(err)
	}
	if _, err := io.ReadFull(client, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
}
