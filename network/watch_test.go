package network

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/go-logr/logr/funcr"
	"k8s.io/klog/v2"
)

// withoutInotifyEnv is set when the test re-executes itself in a user namespace without inotify
// instances or watches.
const withoutInotifyEnv = "MICA_TEST_WITHOUT_INOTIFY"

// A node without free inotify instances or watches still loads a changed configuration, and logs
// once that it polls.
func TestWatchWithoutInotify(t *testing.T) {
	if os.Getenv(withoutInotifyEnv) != "" {
		watchBlindly(t)
		return
	}
	needNode(t)
	self, err := os.Executable()
	must(t, err)
	for _, limit := range []string{"max_inotify_instances", "max_inotify_watches"} {
		cmd := exec.Command("/bin/sh", "-c", "echo 0 >/proc/sys/user/"+limit+" && exec \"$0\" \"$@\"", self, "-test.v", "-test.run", "^TestWatchWithoutInotify$")
		cmd.Env = append(os.Environ(), withoutInotifyEnv+"=1")
		ids := []syscall.SysProcIDMap{{Size: 1}}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Errorf("%s is 0: %v\n%s", limit, err, out)
		}
	}
}

func watchBlindly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net.d")
	w, err := newWatcher(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { must(t, w.close()) }()
	var warnings, changes atomic.Int32
	log := funcr.New(func(_, args string) {
		if strings.Contains(args, "max_user_instances") {
			warnings.Add(1)
		}
	}, funcr.Options{})
	w.start(klog.NewContext(t.Context(), log), func(context.Context) { changes.Add(1) })
	eventually(t, "warning", func() bool { return warnings.Load() == 1 })
	for i, change := range []func() error{
		func() error { return os.WriteFile(filepath.Join(dir, "10.conflist"), []byte("{}"), 0o600) },
		func() error { return os.WriteFile(filepath.Join(dir, "10.conflist"), []byte("{ }"), 0o600) },
		func() error { return os.RemoveAll(dir) },
	} {
		must(t, change())
		eventually(t, "change", func() bool { return changes.Load() > int32(i) })
	}
	eventually(t, "directory made again", func() bool { _, err := os.Stat(dir); return err == nil })
	if n := warnings.Load(); n != 1 {
		t.Errorf("%d warnings", n)
	}
}
