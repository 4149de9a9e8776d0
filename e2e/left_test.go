package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// leaver is a container with the node's process IDs whose process has exited and has left another.
type leaver struct {
	id, cgroup string
	child      int
}

// leave runs a leaver in the pod.
func (f *fixture) leave(p pod) leaver {
	f.t.Helper()
	config := f.containerConfig(busyboxImage, "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!; read x")
	config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
	config.Stdin = true
	l := leaver{id: f.start(p, config)}
	l.cgroup = f.cgroupOf(l.id, "memory")
	f.eventually("the process is started", func() bool { return len(f.log(p, config)) > 0 })
	var err error
	l.child, err = strconv.Atoi(f.log(p, config)[0].text)
	f.no(err)
	return l
}

// lives reports whether the process that the container has left exists.
func (l leaver) lives() bool {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(l.child), "stat"))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// A container with the node's process IDs can leave processes in its cgroup. Its removal kills them
// and removes the cgroup, in every order of the calls and of the daemon's restarts, also if the OCI
// runtime has lost its state of the container.
func TestLeftProcessesEnd(t *testing.T) {
	f := start(t)
	config := f.podConfig()
	config.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_NODE}}
	p := f.runPod(config)
	restart := func() {
		f.no(f.Kill())
		_, err := f.StartDaemon(f.ctx)
		f.no(err)
	}
	kill := func(l leaver) { f.no(f.Runtime.StopContainer(f.ctx, l.id, 0)) }
	forget := func(l leaver) {
		states, err := filepath.Glob(filepath.Join(f.State, "runtimes", "*", l.id, "*.json"))
		f.no(err)
		status, err := filepath.Glob(filepath.Join(f.State, "runtimes", "*", l.id, "status"))
		f.no(err)
		if len(states)+len(status) == 0 {
			t.Fatal("the OCI runtime's state is not found")
		}
		for _, file := range append(states, status...) {
			f.no(os.Remove(file))
		}
	}
	for name, prepare := range map[string]func(leaver){
		"removed while it runs": func(leaver) {},
		"stopped before":        kill,
		"daemon killed after the stop": func(l leaver) {
			kill(l)
			restart()
		},
		"ended without the daemon": func(l leaver) {
			pid, err := strconv.Atoi(f.pidOf(l.id))
			f.no(err)
			f.no(f.Kill())
			f.no(syscall.Kill(pid, syscall.SIGKILL))
			_, err = f.StartDaemon(f.ctx)
			f.no(err)
		},
		"runtime's state lost": forget,
		"runtime's state lost and stopped": func(l leaver) {
			forget(l)
			kill(l)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := f.leave(p)
			if !l.lives() {
				t.Fatal("the container has left no process")
			}
			prepare(l)
			f.no(f.Runtime.RemoveContainer(f.ctx, l.id))
			f.eventually("the process that was left ends", func() bool { return !l.lives() })
			if _, err := os.Stat(l.cgroup); !os.IsNotExist(err) {
				t.Errorf("the cgroup is left: %v", err)
			}
		})
	}
}

// A pod's network is removed while the OCI runtime still deletes its container, here held up by a
// hook. The stop waits for both.
func TestStopReleasesInParallel(t *testing.T) {
	f := start(t)
	begun, resume := filepath.Join(f.Data, "hook-begun"), filepath.Join(f.Data, "hook-resume")
	script := filepath.Join(f.Data, "hook")
	f.no(os.WriteFile(script, fmt.Appendf(nil, "#!/bin/sh\ntouch %s\nuntil [ -e %s ]; do sleep 0.02; done\n", begun, resume), 0o755))
	f.no(os.MkdirAll(f.HookDir(), 0o755))
	f.no(os.WriteFile(filepath.Join(f.HookDir(), "slow.json"), fmt.Appendf(nil,
		`{"version": "1.0.0", "hook": {"path": %q}, "when": {"always": true}, "stages": ["poststop"]}`, script), 0o644))
	p := f.runPod(f.podConfig())
	f.start(p, f.containerConfig(busyboxImage, "sleep", "1000"))
	stopped := make(chan error, 1)
	go func() { stopped <- f.Runtime.StopPodSandbox(f.ctx, p.id) }()
	f.eventually("the OCI runtime deletes the container", func() bool { return exists(begun) })
	f.eventually("the pod's address is released", func() bool {
		leases, err := filepath.Glob(f.Data + "/network/leases/*/*.*.*.*")
		f.no(err)
		return len(leases) == 0
	})
	select {
	case err := <-stopped:
		t.Errorf("the stop has ended before the container is deleted: %v", err)
	default:
	}
	f.no(os.WriteFile(resume, nil, 0o644))
	f.no(<-stopped)
}
