package server

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/podlog"
	"github.com/micarun/mica/internal/reaper"
	"github.com/micarun/mica/runtimeservice/keeper/wire"
)

func TestTable(t *testing.T) {
	tab, err := newTable()
	if err != nil {
		t.Fatal(err)
	}
	defer tab.close()
	a, b := tab.take(), tab.take()
	if a == b || a < 0 || b < 0 {
		t.Fatalf("rows %d and %d", a, b)
	}
	for i := range int64(5) {
		tab.put(a, progress{size: i, file: 7, done: [2]int64{i + 1, i + 2}})
		tab.put(b, progress{size: -1})
	}
	want := progress{size: 4, file: 7, done: [2]int64{5, 6}}
	if got := tab.get(a); got != want {
		t.Errorf("get = %+v", got)
	}
	// The next keeper maps the same memory.
	fd, err := unix.FcntlInt(uintptr(tab.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	next, err := openTable(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer next.close()
	if got := next.get(a); got != want {
		t.Errorf("second mapping: %+v", got)
	}
	if !next.claim(a) || next.claim(a) || next.claim(-1) || next.claim(tableRows) {
		t.Error("claim")
	}
	for range tableRows - 2 {
		tab.take()
	}
	if row := tab.take(); row != -1 {
		t.Errorf("take of a full table = %d", row)
	}
	tab.release(b)
	if row := tab.take(); row != b || tab.get(b) != (progress{}) {
		t.Errorf("released row: %d, %+v", row, tab.get(b))
	}
}

// A write to the inactive side does not change the row. A keeper killed in between leaves such a
// side.
func TestTablePutIsOneStep(t *testing.T) {
	tab, err := newTable()
	if err != nil {
		t.Fatal(err)
	}
	defer tab.close()
	row := tab.take()
	old := progress{size: 1, file: 2, done: [2]int64{3, 4}}
	tab.put(row, old)
	for i := range tab.side(row, 1-tab.which(row).Load()) {
		tab.side(row, 1-tab.which(row).Load())[i] = 0xff
		if got := tab.get(row); got != old {
			t.Fatalf("after byte %d: %+v", i, got)
		}
	}
}

func TestOpenTableRefusesOthers(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := openTable(int(f.Fd())); err == nil {
		t.Error("openTable accepts an empty file")
	}
}

func TestLogFileRewind(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := openLog("c", podlog.File{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	l.write([]byte("one\n"))
	at := l.size
	l.write([]byte("two\n"))
	if err := l.rewind(at, l.file+1); err != nil || l.size != 8 {
		t.Errorf("rewind truncates another file: %d, %v", l.size, err)
	}
	if err := l.rewind(100, l.file); err != nil || l.size != 8 {
		t.Errorf("rewind changes a shorter file: %d, %v", l.size, err)
	}
	if err := l.rewind(at, l.file); err != nil {
		t.Fatal(err)
	}
	l.write([]byte("three\n"))
	if data, _ := os.ReadFile(path); string(data) != "one\nthree\n" {
		t.Errorf("log: %q", data)
	}
}

func TestParseStat(t *testing.T) {
	tail := "S 1 2 3 0 -1 4194560 5 6 7 8 9 10 11 12 20 0 1 0 4711 100 200 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 2304"
	for _, name := range []string{"sh", "a b", "x) S 1 (y", ")"} {
		st, err := parseStat("42 (" + name + ") " + tail + "\n")
		if err != nil || st != (procStat{state: 'S', started: 4711, exitCode: 2304}) {
			t.Errorf("%q: %+v, %v", name, st, err)
		}
	}
	for _, bad := range []string{"", "42 (sh", "42 (sh) S 1", "42 (sh) " + strings.Replace(tail, "4711", "x", 1)} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	if st, err := readStat(os.Getpid()); err != nil || st.started == 0 {
		t.Errorf("own stat: %+v, %v", st, err)
	}
}

func TestOOMKills(t *testing.T) {
	for name, tc := range map[string]struct {
		file, text string
		want       uint64
	}{
		"v2":     {"memory.events", "low 0\nhigh 0\nmax 9\noom 2\noom_kill 3\noom_group_kill 4\n", 3},
		"v1":     {"memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n", 5},
		"old v1": {"memory.oom_control", "oom_kill_disable 0\nunder_oom 1\n", 0},
		"none":   {"other", "oom_kill 5\n", 0},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, tc.file), []byte(tc.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, _ := oomKills(dir); got != tc.want {
			t.Errorf("%s: %d", name, got)
		}
	}
	if got, there := oomKills(""); got != 0 || there {
		t.Errorf("no directory: %d", got)
	}
}

func TestCgroupDirs(t *testing.T) {
	text := "9:name=systemd:/s\n4:memory:/a/b\n3:cpu,cpuacct:/c\n0::/u/v\n"
	want := []string{"/sys/fs/cgroup/memory/a/b", "/sys/fs/cgroup/u/v", "/sys/fs/cgroup/unified/u/v"}
	if diff := cmp.Diff(want, cgroupDirs(text, "memory")); diff != "" {
		t.Error(diff)
	}
	if got := cgroupDirs("4:memory:/\n0::/\n", "memory"); got != nil {
		t.Errorf("root: %v", got)
	}
}

func TestLogErrors(t *testing.T) {
	for text, want := range map[string]string{
		"": "",
		`{"level":"warning","msg":"w"}` + "\n" + `{"level":"error","msg":"runc create failed: x\n"}`: "runc create failed: x",
		`{"msg":"crun says"}`: "crun says",
		"not json\n" + `{"level":"error","msg":"a"}` + "\n" + `{"level":"fatal","msg":"b"}`: "a; b",
	} {
		if got := logErrors(text); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}

func TestHierarchyRoots(t *testing.T) {
	for controllers, want := range map[string][]string{
		"":             {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"},
		"name=systemd": {"/sys/fs/cgroup/systemd"},
		"cpu,cpuacct":  {"/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu"},
	} {
		if got := hierarchyRoots(controllers); !slices.Equal(got, want) {
			t.Errorf("%q: %v", controllers, got)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add("42 (a) b) S 1")
	f.Fuzz(func(t *testing.T, text string) {
		if st, err := parseStat(text); err == nil && st.state == 0 {
			t.Errorf("%q: no state", text)
		}
	})
}

// Property: a log whose file system is full at times has whole lines only, and no line twice.
func TestLogFileOnFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a small tmpfs")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	l, err := openLog("c", podlog.File{Path: filepath.Join(dir, "log")})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	for i := range 3000 {
		l.write([]byte("line " + strconv.Itoa(2*i) + "\nline " + strconv.Itoa(2*i+1) + "\n"))
	}
	data, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil || l.lost == 0 || int64(len(data)) != l.size {
		t.Fatalf("%d bytes, size %d, lost %d, %v", len(data), l.size, l.lost, err)
	}
	last := -1
	for line := range bytes.Lines(data) {
		n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(string(line), "line "), "\n"))
		if err != nil || n <= last || !strings.HasSuffix(string(line), "\n") {
			t.Fatalf("line %q after %d", line, last)
		}
		last = n
	}
}

// Only a keeper of the same or a later protocol version replaces this one.
func TestTryProgram(t *testing.T) {
	s := &Server{}
	var err error
	if s.reaper, err = reaper.New(reaper.Options{}); err != nil {
		t.Fatal(err)
	}
	defer s.reaper.Close()
	for said, want := range map[string]string{
		"mica-keeper protocol " + strconv.Itoa(wire.Version):   "",
		"mica-keeper protocol " + strconv.Itoa(wire.Version+1): "",
		"mica-keeper protocol " + strconv.Itoa(wire.Version-1): "is older",
		"mica-keeper protocol":                                 "is not a keeper",
		"mica-keeper protocol one":                             "is not a keeper",
		"another program 1":                                    "is not a keeper",
	} {
		path := filepath.Join(t.TempDir(), "program")
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho '"+said+"'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		err := tryProgram(t.Context(), s, path)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", said, err)
		}
	}
	if err := tryProgram(t.Context(), s, "/nonexistent"); err == nil {
		t.Error("tryProgram accepts a missing program")
	}
}

// end also kills a process whose pidfd becomes known only after the call.
func TestEndWithALateDescriptor(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := newContainer(record{})
	died := make(chan struct{})
	go func() {
		defer close(died)
		_ = cmd.Wait()
		close(c.gone)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-died
	})
	ended := make(chan error, 1)
	go func() { ended <- (&Server{}).end(t.Context(), c) }()
	select {
	case err := <-ended:
		t.Errorf("end without a pidfd: %v", err)
	case <-time.After(killAgain / 2):
	}
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(pidfd) }()
	c.mu.Lock()
	c.pidfd = pidfd
	c.mu.Unlock()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func (t *table) close() {
	_ = unix.Munmap(t.mem)
	_ = unix.Close(t.fd)
}
