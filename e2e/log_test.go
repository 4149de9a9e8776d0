package e2e

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/cri-client/pkg/logs"
)

func TestLogStreams(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	config := f.containerConfig(busyboxImage, "sh", "-c", "echo out; echo err >&2; printf 'no newline'")
	id := f.start(p, config)
	f.await(id)
	streams := map[string]string{}
	for _, line := range f.log(p, config) {
		streams[line.stream] += text([]logLine{line})
		if age := time.Since(line.at); age < 0 || age > 5*time.Minute {
			t.Errorf("line %q is %s old", line.text, age)
		}
	}
	if streams["stdout"] != "out\nno newline" || streams["stderr"] != "err\n" {
		t.Errorf("streams are %q", streams)
	}
	// The kubelet builds a termination message in this way.
	var stdout, stderr bytes.Buffer
	f.no(logs.ReadLogs(f.ctx, filepath.Join(p.config.LogDirectory, config.LogPath), id, &logs.LogOptions{}, f.Runtime, &stdout, &stderr))
	if stdout.String() != "out\nno newline" || stderr.String() != "err\n" {
		t.Errorf("a kubelet would read %q and %q", stdout.String(), stderr.String())
	}
	if path := f.status(f.start(p, f.containerConfig(busyboxImage, "true"))).LogPath; !strings.HasPrefix(path, p.config.LogDirectory) {
		t.Errorf("log path in the status is %q, want one below %q", path, p.config.LogDirectory)
	}
}

func TestLongLinesAreSplit(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	const length = 40_000
	config := f.containerConfig(busyboxImage, "sh", "-c", "head -c 40000 /dev/zero | tr '\\0' x; echo; echo next")
	f.await(f.start(p, config))
	lines := f.log(p, config)
	if got, want := text(lines), strings.Repeat("x", length)+"\nnext\n"; got != want {
		t.Errorf("log has %d bytes, want %d", len(got), len(want))
	}
	for _, line := range lines {
		if len(line.text) > 16<<10 {
			t.Errorf("a line has %d bytes, want at most 16 KiB", len(line.text))
		}
	}
}

// The kubelet reads logs in this way. It follows them until the container ends.
func TestFollowLogs(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	config := f.containerConfig(busyboxImage, "sh", "-c", "for n in 1 2 3 4 5; do echo $n; sleep 0.1; done")
	id := f.start(p, config)
	var stdout, stderr bytes.Buffer
	ctx, cancel := context.WithTimeout(f.ctx, time.Minute)
	defer cancel()
	options := &logs.LogOptions{Follow: true}
	path := filepath.Join(p.config.LogDirectory, config.LogPath)
	f.no(logs.ReadLogs(ctx, path, id, options, f.Runtime, &stdout, &stderr))
	if got := stdout.String(); got != "1\n2\n3\n4\n5\n" || stderr.Len() > 0 {
		t.Errorf("followed %q and %q", got, stderr.String())
	}
}

// Repeated log rotation, as by the kubelet, of a container that prints at full speed: no line is
// lost, duplicated or out of order.
func TestReopenLosesNoLine(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	const count = 200_000
	config := f.containerConfig(toolsImage, "sh", "-c", "/bin/lines 200000 5000; until [ -e /dev/shm/end ]; do sleep 0.1; done")
	id := f.start(p, config)
	path := filepath.Join(p.config.LogDirectory, config.LogPath)
	last := "line " + strconv.Itoa(count)
	var all []logLine
	for len(all) == 0 || all[len(all)-1].text != last {
		f.no(f.ctx.Err())
		f.no(os.Rename(path, path+".old"))
		f.no(f.Runtime.ReopenContainerLog(f.ctx, id))
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("no log after it was reopened: %v", err)
		}
		all = append(all, f.logFile(path+".old")...)
	}
	f.no(os.WriteFile(filepath.Join(f.State, "pods", p.id, "shm", "end"), nil, 0o644))
	f.await(id)
	all = append(all, f.log(p, config)...)
	checkNumbered(t, all, count)
}

// checkNumbered fails the test unless the log is "line 1" to "line count".
func checkNumbered(t *testing.T, lines []logLine, count int) {
	t.Helper()
	var want strings.Builder
	for n := range count {
		want.WriteString("line ")
		want.WriteString(strconv.Itoa(n + 1))
		want.WriteByte('\n')
	}
	got := text(lines)
	if got == want.String() {
		return
	}
	gotLines, wantLines := strings.Split(got, "\n"), strings.Split(want.String(), "\n")
	for n := range min(len(gotLines), len(wantLines)) {
		if gotLines[n] != wantLines[n] {
			t.Fatalf("%d lines, want %d; line %d of the log is %q", len(gotLines)-1, count, n+1, gotLines[n])
		}
	}
	t.Fatalf("%d lines, want %d", len(gotLines)-1, count)
}
