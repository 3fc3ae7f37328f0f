package connections

import (
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"testing"
)

func TestAnOwnerReadsTheEndOfAConnectionThatIsHungUp(t *testing.T) {
	client, server := connected(t)
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
	hangUp([]string{strconv.Itoa(os.Getpid())}, map[string]bool{name: true})
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

func TestProcessesOfACgroupAreThoseOfAllInIt(t *testing.T) {
	root := t.TempDir()
	for folder, content := range map[string]string{"": "1\n2\n", "/inner": "3\n", "/inner/most": "", "/other": "4\n"} {
		if err := os.MkdirAll(root+folder, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+folder+"/cgroup.procs", []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	found := processesOf(root)
	slices.Sort(found)
	if !slices.Equal(found, []string{"1", "2", "3", "4"}) {
		t.Fatal(found)
	}
	if none := processesOf(root + "/absent"); len(none) != 0 {
		t.Fatal(none)
	}
}
