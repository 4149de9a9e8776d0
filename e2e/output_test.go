package e2e

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A background process of a shell writes after the command has ended, and later still if the
// container has little processor time. The stream ends only when this output has ended.
func TestExecStreamTakesLateOutput(t *testing.T) {
	f := start(t)
	config := f.containerConfig(busyboxImage, "sleep", "1000")
	config.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 100_000, CpuQuota: 10_000}
	id := f.start(f.runPod(f.podConfig()), config)
	const late = "(sleep 0.3; echo late) & echo first"
	// ExecSync takes what comes within half a second. A busy machine may need more for one of the
	// commands, but not for every one.
	got := ""
	for range 10 {
		if got = f.exec(id, "sh", "-c", late); got == "first\nlate\n" {
			break
		}
	}
	if got != "first\nlate\n" {
		t.Errorf("ExecSync returns %q", got)
	}
	for protocol, script := range map[string]string{"spdy": late, "websocket": "(sleep 2; echo late) & echo first"} {
		response, err := f.Runtime.Exec(f.ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Stdout: true, Stderr: true})
		f.no(err)
		s := &streams{}
		if err := f.stream(protocol, response.Url, s); err != nil || s.stdout.String() != "first\nlate\n" {
			t.Errorf("%s: error %v, output %q", protocol, err, s.stdout.String())
		}
	}
	// The container is stopped once the command has ended: until then, the stop would kill it.
	const left = "(while kill -0 $$ 2>/dev/null; do sleep 0.05; done; echo ended; exec sleep 1000) &"
	response, err := f.Runtime.Exec(f.ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", left}, Stdout: true, Stderr: true})
	f.no(err)
	s := &streams{stdout: received{each: func(string) {
		go func() { _ = f.Runtime.StopContainer(f.ctx, id, 0) }()
	}}}
	if err := f.stream("spdy", response.Url, s); err != nil || s.stdout.String() != "ended\n" {
		t.Errorf("stopped container: error %v, output %q", err, s.stdout.String())
	}
	f.await(id)
}
