package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Slot is a place for one node on the machine: a name, a subnet, directories and ports that no other
// node uses while the slot is held.
type Slot struct {
	Name   string
	Subnet netip.Prefix
	State  string
	Data   string
	// Metrics is the address of the daemon's metrics. Its port is below the kernel's ephemeral
	// ports, so that no other program takes it between two starts of the daemon.
	Metrics string
	// Ports are for the test's servers and host ports, from the first number on. No other test uses
	// them, and they are below the kernel's ephemeral ports.
	Ports [slotPorts]int

	lock *os.File
}

const (
	slotStates = "/run/mica-e2e"
	slotData   = "/var/tmp/mica-e2e"
	slotCount  = 64

	firstMetricsPort = 21700
	slotPorts        = 16
	firstPort        = 21800
)

// TakeSlot takes a free slot. It removes the node and the directories that a killed test left in
// the slot.
func TakeSlot(ctx context.Context) (*Slot, error) {
	if err := os.MkdirAll(slotStates, 0o711); err != nil {
		return nil, fmt.Errorf("take slot: %w", err)
	}
	for number := range slotCount {
		name := fmt.Sprintf("mica-e%d", number)
		lock, err := os.OpenFile(filepath.Join(slotStates, name+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("take slot: %w", err)
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			_ = lock.Close() // another test holds it
			continue
		}
		slot := &Slot{
			Name:    name,
			Subnet:  netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(number), 0}), 24),
			State:   filepath.Join(slotStates, name),
			Data:    filepath.Join(slotData, name),
			Metrics: fmt.Sprintf("127.0.0.1:%d", firstMetricsPort+number),
			lock:    lock,
		}
		for i := range slot.Ports {
			slot.Ports[i] = firstPort + number*slotPorts + i
		}
		if err := slot.clear(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("take slot %s: %w", name, err), lock.Close())
		}
		return slot, nil
	}
	return nil, fmt.Errorf("take slot: all %d are held", slotCount)
}

// clear removes everything that the slot's node left when its test was killed.
func (s *Slot) clear(ctx context.Context) error {
	if err := s.endDaemons(); err != nil {
		return err
	}
	stale := &Node{Options: Options{Name: s.Name, State: s.State, Data: s.Data, Subnet: s.Subnet}}
	_, stateErr := os.Stat(s.State)
	_, dataErr := os.Stat(s.Data)
	if errors.Is(stateErr, os.ErrNotExist) && errors.Is(dataErr, os.ErrNotExist) && len(stale.cgroupRoots()) == 0 {
		return nil
	}
	// The error is ignored: leftovers of a killed test do not fail this test.
	_ = stale.Remove(ctx)
	for _, dir := range []string{s.State, s.Data} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// endDaemons ends the daemons that a killed test left in the slot. They hold its port, also where
// the test kept the node's data on a disk of its own, beside the slot's directory.
func (s *Slot) endDaemons() error {
	all, err := processes()
	if err != nil {
		return err
	}
	for _, p := range all {
		ofSlot := func(argument string) bool {
			return strings.HasPrefix(argument, s.Data+"/") || strings.HasPrefix(argument, s.Data+".")
		}
		if filepath.Base(p.arguments[0]) == "micad" && slices.ContainsFunc(p.arguments, ofSlot) {
			if err := endProcess(p.pid); err != nil {
				return err
			}
		}
	}
	return nil
}

// Release frees the slot.
func (s *Slot) Release() error { return s.lock.Close() }
