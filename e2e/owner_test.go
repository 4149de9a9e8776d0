package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// Cgroups below the default parent that do not belong to this daemon keep their processes: those of
// a daemon with other directories, or of a kubelet with the same parent.
func TestStartKeepsForeignCgroups(t *testing.T) {
	f := start(t)
	f.runPod(f.podConfig()) // so that the parent exists
	other := f.CgroupParent() + "/burstable"
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "memory")); err == nil {
		root = filepath.Join(root, "memory")
	}
	f.no(os.MkdirAll(root+other+"/pod1", 0o755))
	cmd := exec.Command("sleep", "1000")
	f.no(cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	f.no(os.WriteFile(root+other+"/pod1/cgroup.procs", []byte(strconv.Itoa(cmd.Process.Pid)), 0))
	f.no(f.StopDaemon())
	_, err := f.StartDaemon(f.ctx)
	f.no(err)
	select {
	case err := <-ended:
		t.Errorf("the start ended a process in a foreign cgroup: %v", err)
	default:
		f.no(cmd.Process.Kill())
		<-ended
	}
	f.no(f.removeCgroups(other))
}
