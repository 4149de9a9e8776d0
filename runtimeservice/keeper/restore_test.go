package keeper

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// restorer replaces a runtime that can restore: it runs the bundle from the start, and stores its
// command line.
const restorer = `#!/bin/sh
echo "$@" >>%[1]s
args=
restore=
while [ $# -gt 0 ]; do
	case $1 in
	restore) restore=y; args="$args run" ;;
	--image-path|--work-path) shift ;;
	--file-locks) ;;
	*) args="$args $1" ;;
	esac
	shift
done
if [ -n "$restore" ] && [ "$CRIU" != here ]; then
	echo "criu failed: type NOTIFY errno 0" >&2
	exit 1
fi
exec runc $args
`

func (n *node) restorer() (path, calls string) {
	n.t.Helper()
	dir := n.t.TempDir()
	path, calls = filepath.Join(dir, "restorer"), filepath.Join(dir, "calls")
	if err := os.WriteFile(path, fmt.Appendf(nil, restorer, calls), 0o755); err != nil {
		n.t.Fatal(err)
	}
	return path, calls
}

// A restored container is a child of the keeper, like a created one, but runs without Start.
func TestRestore(t *testing.T) {
	n := newNode(t)
	runtime, calls := n.restorer()
	a := RestoreArgs{
		CreateArgs: n.args(n.newID(), spec{script: "echo restored; read x; echo got $x; exit 7"}),
		Images:     "/images", Work: "/work", Flags: []string{"--file-locks"},
	}
	a.Runtime[0], a.Stdin, a.Env = runtime, true, []string{"CRIU=here"}
	if err := os.WriteFile(a.LogPath, []byte("2026-01-02T03:04:05.6Z stdout F before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	pid, err := n.client.Restore(t.Context(), a)
	if err != nil || pid <= 0 {
		t.Fatalf("Restore = %d, %v", pid, err)
	}
	if st, err := n.client.Get(t.Context(), a.ID); err != nil || !st.Running || st.Pid != pid {
		t.Errorf("Get = %+v, %v", st, err)
	}
	if parent := parentOf(t, pid); parent != n.keeperPid() {
		t.Errorf("the parent is process %d, want the keeper", parent)
	}
	at := n.attach(a.ID, AttachArgs{Stdin: true})
	if _, err := at.Stdin.Write([]byte("word\n")); err != nil {
		t.Fatal(err)
	}
	if exit := n.exit(a.ID); exit.Code != 7 {
		t.Errorf("exit = %+v", exit)
	}
	var got []string
	for _, l := range readLog(t, a.LogPath) {
		got = append(got, l.text)
	}
	if text := strings.Join(got, ","); text != "before,restored,got word" {
		t.Errorf("log = %s: want the lines before the checkpoint and the later ones", text)
	}
	line, err := os.ReadFile(calls)
	want := fmt.Sprintf("restore --detach --image-path /images --work-path /work --file-locks --bundle %s --pid-file", a.Bundle)
	if err != nil || !strings.Contains(string(line), want) {
		t.Errorf("the runtime's command line is %q, %v, want %q in it", line, err, want)
	}
}

func TestRestoreFails(t *testing.T) {
	n := newNode(t)
	runtime, _ := n.restorer()
	a := RestoreArgs{CreateArgs: n.args(n.newID(), spec{script: "sleep 100"}), Images: "/images", Work: "/work"}
	a.Runtime[0] = runtime
	_, err := n.client.Restore(t.Context(), a)
	if err == nil || !strings.Contains(err.Error(), "restore of container "+a.ID) || !strings.Contains(err.Error(), "criu failed: type NOTIFY") {
		t.Errorf("Restore by a runtime that fails = %v", err)
	}
	if states, err := n.client.List(t.Context()); err != nil || len(states) != 0 {
		t.Errorf("a failed Restore leaves %+v, %v", states, err)
	}
	a.Images = "relative"
	if _, err := n.client.Restore(t.Context(), a); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Restore from a relative path = %v", err)
	}
}

// After Flush, the log contains everything that was written before.
func TestFlush(t *testing.T) {
	n := newNode(t)
	const lines = 20000
	id, log := n.run(spec{script: fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); echo $i; done; echo >/tmp/done; sleep 1000", lines)})
	st, err := n.client.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "everything is written", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d/root/tmp/done", st.Pid))
		return err == nil
	})
	if err := n.client.Flush(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	checkCount(t, lines, log)
	if err := n.client.Flush(t.Context(), "none"); !errdefs.IsNotFound(err) {
		t.Errorf("Flush of an unknown container = %v", err)
	}
}

func parentOf(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		t.Fatal(err)
	}
	return parent
}
