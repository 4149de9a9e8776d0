package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// machine is one boot.
type machine struct {
	settings
	disk   string // directory of kernel, initrd and root file system
	images string // directory of images
	dir    string // directory of this machine
}

// share is the directory that the machine sees as /share.
func (m machine) share() string { return filepath.Join(m.dir, "share") }

// out is the directory that the machine sees as /out and may write to.
func (m machine) out() string { return filepath.Join(m.dir, "out") }

// run boots the machine, waits until it has powered off, and returns the exit code of its job.
func (m machine) run(ctx context.Context) (int, error) {
	if err := os.Mkdir(m.out(), 0o755); err != nil {
		return 0, fmt.Errorf("make directory for the machine: %w", err)
	}
	if m.console == "" {
		m.console = filepath.Join(m.dir, "console")
	}
	// The kernel kills qemu when this thread ends, so also when this program is killed. The thread
	// is locked, so that no other goroutine uses or ends it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", m.arguments()...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// The machine has the port for as long as qemu's input is open.
	keyboard, err := cmd.StdinPipe()
	if err != nil {
		return 0, fmt.Errorf("start qemu: %w", err)
	}
	defer keyboard.Close()
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start qemu: %w", err)
	}
	if len(m.command) > 0 {
		go func() { _, _ = io.Copy(keyboard, os.Stdin) }()
	}
	if err := cmd.Wait(); err != nil {
		return 0, errors.Join(fmt.Errorf("run qemu: %w", err), ctx.Err(), m.said())
	}
	text, err := os.ReadFile(filepath.Join(m.out(), "status"))
	if err != nil {
		return 0, errors.Join(errors.New("the machine powered off before its job ended"), m.said())
	}
	code, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 1, fmt.Errorf("the machine's job ended by signal %s", text)
	}
	return code, nil
}

func (m machine) arguments() []string {
	const kernel = "console=ttyS0 quiet psi=1 mitigations=off panic=-1"
	arguments := []string{
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-smp", strconv.Itoa(m.processors), "-m", strconv.Itoa(m.memory),
		"-nodefaults", "-no-reboot", "-display", "none",
		"-kernel", filepath.Join(m.disk, "vmlinuz"), "-initrd", filepath.Join(m.disk, "initrd"), "-append", kernel,
		"-drive", "file=" + filepath.Join(m.disk, "root.ext4") + ",format=raw,if=virtio,snapshot=on",
		"-nic", "user,model=virtio,restrict=on",
		"-serial", "file:" + m.console,
		"-device", "virtio-serial", "-chardev", "stdio,id=job,signal=off", "-device", "virtserialport,chardev=job,name=job",
	}
	for _, share := range []struct{ tag, dir, options string }{
		{"share", m.share(), ",readonly=on"}, {"images", m.images, ",readonly=on"}, {"out", m.out(), ""},
	} {
		arguments = append(arguments, "-virtfs", "local,path="+share.dir+",mount_tag="+share.tag+",security_model=none"+share.options)
	}
	return arguments
}

// said adds the end of the machine's console output to an error.
func (m machine) said() error {
	text, err := os.ReadFile(m.console)
	if err != nil {
		return err
	}
	return fmt.Errorf("the console's end:\n%s", text[max(0, len(text)-4000):])
}
