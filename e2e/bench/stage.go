package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/micarun/mica/e2e/images"
	"github.com/micarun/mica/e2e/node"
	"github.com/micarun/mica/internal/testregistry"
)

// stage is everything that both peers share: the registry, the network configuration and the file
// systems of their stores.
type stage struct {
	slot     *node.Slot
	work     string // directory in memory
	registry *testregistry.Server
	confDir  string
	certs    string
	mounts   []string
}

// newStage makes the stage on a new tmpfs.
func newStage(ctx context.Context) (_ *stage, err error) {
	slot, err := node.TakeSlot(ctx)
	if err != nil {
		return nil, err
	}
	s := &stage{slot: slot, work: slot.State + "-bench"}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(context.WithoutCancel(ctx)))
		}
	}()
	if err := os.MkdirAll(s.work, 0o711); err != nil {
		return nil, err
	}
	for unix.Unmount(s.work, unix.MNT_DETACH) == nil { // of a killed benchmark
	}
	if err := s.mount(ctx, "-t", "tmpfs", "-o", "size=12g", "bench", s.work); err != nil {
		return nil, err
	}
	if err := s.network(); err != nil {
		return nil, err
	}
	dir, err := images.Dir()
	if err != nil {
		return nil, err
	}
	if s.registry, err = images.Registry(dir).Start("127.0.0.1:0"); err != nil {
		return nil, err
	}
	s.certs = filepath.Join(s.work, "certs.d")
	return s, node.WriteMirror(s.certs, s.registry.Addr)
}

// network writes the conflist that both peers use: the same bridge and the same leases.
func (s *stage) network() error {
	s.confDir = filepath.Join(s.work, "net.d")
	if err := os.MkdirAll(s.confDir, 0o755); err != nil {
		return err
	}
	conflist := fmt.Sprintf(`{
  "cniVersion": "1.0.0",
  "name": %[1]q,
  "plugins": [
    {
      "type": "bridge", "bridge": %[1]q, "isGateway": true, "ipMasq": true, "hairpinMode": true,
      "ipam": {
        "type": "host-local", "dataDir": %[2]q,
        "ranges": [[{"subnet": %[3]q}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`, s.slot.Name, filepath.Join(s.work, "leases"), s.slot.Subnet)
	return os.WriteFile(filepath.Join(s.confDir, "10-bench.conflist"), []byte(conflist), 0o644)
}

// store makes a journaled ext4 in memory for one peer's store.
func (s *stage) store(ctx context.Context, name string) (string, error) {
	image, dir := filepath.Join(s.work, name+".ext4"), filepath.Join(s.work, name)
	file, err := os.Create(image)
	if err != nil {
		return "", err
	}
	if err := errors.Join(file.Truncate(5<<30), file.Close()); err != nil {
		return "", err
	}
	// Everything is initialised now, so that no kernel thread does it during the measurements.
	options := "lazy_itable_init=0,lazy_journal_init=0"
	if err := command(ctx, "mkfs.ext4", "-q", "-O", "has_journal", "-E", options, image); err != nil {
		return "", err
	}
	if err := os.Mkdir(dir, 0o711); err != nil {
		return "", err
	}
	return dir, s.mount(ctx, "-o", "loop", image, dir)
}

func (s *stage) mount(ctx context.Context, arguments ...string) error {
	if err := command(ctx, "mount", arguments...); err != nil {
		return err
	}
	s.mounts = append(s.mounts, arguments[len(arguments)-1])
	return nil
}

// close removes the stage. The peers must have stopped.
func (s *stage) close(ctx context.Context) error {
	var errs []error
	if s.registry != nil {
		errs = append(errs, s.registry.Close())
	}
	for n := len(s.mounts) - 1; n >= 0; n-- {
		errs = append(errs, unmount(s.mounts[n]))
	}
	if _, err := os.Stat("/sys/class/net/" + s.slot.Name); err == nil {
		errs = append(errs, command(ctx, "ip", "link", "delete", s.slot.Name))
	}
	return errors.Join(append(errs, os.RemoveAll(s.work), s.slot.Release())...)
}

// unmount also unmounts a busy file system, which the kernel then removes later. A mount namespace
// made meanwhile, such as a test's, has a copy of the store's mount, which keeps its loop device's
// file open.
func unmount(dir string) error {
	err := unix.Unmount(dir, 0)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(dir, unix.MNT_DETACH)
	}
	return os.NewSyscallError("unmount "+dir, err)
}

func command(ctx context.Context, name string, arguments ...string) error {
	if out, err := exec.CommandContext(ctx, name, arguments...).CombinedOutput(); err != nil {
		return fmt.Errorf("run %s %s: %w: %s", name, strings.Join(arguments, " "), err, out)
	}
	return nil
}
