package network

import (
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"torpor/guest/internal/netlink"
)

// namespace gives the test's thread a network of its own, with a device in eth0's place.
func namespace(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and the namespace with it
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		t.Skip(err)
	}
	conn, err := netlink.Dial(syscall.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const linkInfo, kind = 18, 1 // IFLA_LINKINFO, IFLA_INFO_KIND
	message := make([]byte, syscall.SizeofIfInfomsg)
	message = append(message, netlink.Attribute(syscall.IFLA_IFNAME, []byte(Device+"\x00"))...)
	message = append(message, netlink.Attribute(linkInfo, netlink.Attribute(kind, []byte("bridge")))...)
	if err := conn.Do(syscall.RTM_NEWLINK, syscall.NLM_F_CREATE|syscall.NLM_F_EXCL, message); err != nil {
		t.Skipf("make a device: %v", err)
	}
}

func TestTheCardGetsItsAddressesAndTheRoute(t *testing.T) {
	namespace(t)
	for range 2 { // a second time changes nothing
		if err := Up(); err != nil {
			t.Fatal(err)
		}
	}
	card, err := net.InterfaceByName(Device)
	if err != nil {
		t.Fatal(err)
	}
	addresses, err := card.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	if len(addresses) < 2 || addresses[0].String() != "100.64.0.2/29" || addresses[1].String() != "100.64.0.3/29" {
		t.Fatalf("%v", addresses)
	}
	conn, err := net.Dial("udp4", "192.0.2.1:9") // sends nothing; finds the route
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if from := conn.LocalAddr().String(); !strings.HasPrefix(from, "100.64.0.2:") {
		t.Fatalf("from %s", from)
	}
}

func TestTheKernelTakesTheRules(t *testing.T) {
	namespace(t)
	if _, err := os.Stat(nft); err != nil {
		t.Skip("nft is not installed")
	}
	command := exec.Command(nft, "-c", "-f", "-") // forked by this thread, in its namespace
	command.Stdin = strings.NewReader(rules)
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
}
