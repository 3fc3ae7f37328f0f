// Package network gives the guest its addresses, its route, its resolver and the rules by which traffic comes in.
//
// Every guest has the same network (PROTOCOL.md), so there is nothing to configure.
package network

import (
	"bytes"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"torpor/guest/internal/netlink"
	"torpor/guest/internal/process"
)

const (
	// Device is the guest's one network card.
	Device = "eth0"
	// Port is where the agent listens on AgentAddress.
	Port = 1024

	prefixLength = 29
	nft          = "/usr/sbin/nft"
)

// The addresses every guest has.
var (
	Gateway        = netip.MustParseAddr("100.64.0.1")
	TrafficAddress = netip.MustParseAddr("100.64.0.2")
	AgentAddress   = netip.MustParseAddr("100.64.0.3")
)

//go:embed rules.nft
var rules string

// Resolver is the content of resolv.conf in the guest and in the application's container.
var Resolver = fmt.Sprintf("nameserver %s\n", Gateway)

// Up configures loopback and the network card.
func Up() error {
	conn, err := netlink.Dial(syscall.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := linkUp(conn, "lo"); err != nil {
		return err
	}
	// Traffic first: the first address is the source of what the guest sends.
	for _, address := range []netip.Addr{TrafficAddress, AgentAddress} {
		if err := addAddress(conn, address); err != nil {
			return err
		}
	}
	if err := linkUp(conn, Device); err != nil {
		return err
	}
	return addDefaultRoute(conn)
}

// Tune sets what the kernel must allow for the rules and for life after a restore.
func Tune() error {
	settings := map[string]string{
		"conf/all/route_localnet":            "1", // else packets for 127.0.0.1 from the card are dropped
		"conf/" + Device + "/route_localnet": "1",
		// A clone's gateway may have another hardware address: believe it at once, not a second later.
		"neigh/" + Device + "/locktime": "0",
	}
	for name, value := range settings {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0o644); err != nil {
			return fmt.Errorf("set net.ipv4 %s: %w", name, err)
		}
	}
	return nil
}

// Filter installs the guest's packet rules.
func Filter(registry *process.Registry) error {
	command := exec.Command(nft, "-f", "-")
	command.Stdin = strings.NewReader(rules)
	output, err := registry.Output(command)
	if err != nil {
		return fmt.Errorf("install packet rules: %w: %s", err, bytes.TrimSpace(output))
	}
	return nil
}

func linkUp(conn *netlink.Conn, name string) error {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return fmt.Errorf("find network device %s: %w", name, err)
	}
	message := make([]byte, syscall.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(message[4:], uint32(link.Index))
	binary.NativeEndian.PutUint32(message[8:], syscall.IFF_UP)
	binary.NativeEndian.PutUint32(message[12:], syscall.IFF_UP)
	if err := conn.Do(syscall.RTM_NEWLINK, 0, message); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}

func addAddress(conn *netlink.Conn, address netip.Addr) error {
	link, err := net.InterfaceByName(Device)
	if err != nil {
		return fmt.Errorf("find network device %s: %w", Device, err)
	}
	message := make([]byte, syscall.SizeofIfAddrmsg)
	message[0] = syscall.AF_INET
	message[1] = prefixLength
	binary.NativeEndian.PutUint32(message[4:], uint32(link.Index))
	message = append(message, netlink.Attribute(syscall.IFA_LOCAL, address.AsSlice())...)
	message = append(message, netlink.Attribute(syscall.IFA_ADDRESS, address.AsSlice())...)
	err = conn.Do(syscall.RTM_NEWADDR, syscall.NLM_F_CREATE|syscall.NLM_F_EXCL, message)
	if err != nil && !errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("give %s the address %s: %w", Device, address, err)
	}
	return nil
}

func addDefaultRoute(conn *netlink.Conn) error {
	message := make([]byte, syscall.SizeofRtMsg)
	message[0] = syscall.AF_INET
	message[4] = syscall.RT_TABLE_MAIN
	message[5] = syscall.RTPROT_BOOT
	message[6] = syscall.RT_SCOPE_UNIVERSE
	message[7] = syscall.RTN_UNICAST
	message = append(message, netlink.Attribute(syscall.RTA_GATEWAY, Gateway.AsSlice())...)
	err := conn.Do(syscall.RTM_NEWROUTE, syscall.NLM_F_CREATE|syscall.NLM_F_EXCL, message)
	if err != nil && !errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("route through %s: %w", Gateway, err)
	}
	return nil
}
