package network

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// InterfaceStats holds the counters of one interface since its creation.
type InterfaceStats struct {
	Name string
	// Directions are as seen from the pod.
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Stats returns the counters of every interface except loopback in the network namespace pinned at
// nsPath; "" means the node's. It costs one netlink socket and one dump, and leaves nothing open.
// It may be called concurrently.
func Stats(nsPath string) ([]InterfaceStats, error) {
	stats, err := readStats(nsPath)
	if err != nil {
		return nil, fmt.Errorf("read network counters of %q: %w", nsPath, err)
	}
	return stats, nil
}

func readStats(nsPath string) ([]InterfaceStats, error) {
	handle, err := openHandle(nsPath)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	links, err := listLinks(handle)
	if err != nil {
		return nil, err
	}
	var stats []InterfaceStats
	for _, link := range links {
		a := link.Attrs()
		if a.Flags&net.FlagLoopback != 0 || a.Statistics == nil {
			continue
		}
		s := a.Statistics
		stats = append(stats, InterfaceStats{
			// A pod may name an interface with bytes that no message of the CRI can hold.
			Name:    strings.ToValidUTF8(a.Name, "\uFFFD"),
			RxBytes: s.RxBytes, RxPackets: s.RxPackets, RxErrors: s.RxErrors, RxDropped: s.RxDropped,
			TxBytes: s.TxBytes, TxPackets: s.TxPackets, TxErrors: s.TxErrors, TxDropped: s.TxDropped,
		})
	}
	return stats, nil
}

// openHandle returns a netlink socket in a namespace. The library moves the calling thread into the
// namespace while it opens the socket.
func openHandle(nsPath string) (*netlink.Handle, error) {
	if nsPath == "" {
		return netlink.NewHandle(unix.NETLINK_ROUTE)
	}
	ns, err := netns.GetFromPath(nsPath)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ns.Close() }()
	return netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
}

// listLinks lists the links. It retries a dump that a concurrent change interrupted.
func listLinks(handle *netlink.Handle) (links []netlink.Link, err error) {
	const attempts = 5
	for range attempts {
		links, err = handle.LinkList()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return links, err
}
