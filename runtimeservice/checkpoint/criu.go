package checkpoint

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// minVersion is the oldest CRIU that restores processes into namespaces
	// that are there already, as those of a pod are.
	minVersion = 31600
	// probeTimeout bounds each of the two programs that a probe runs.
	probeTimeout = 30 * time.Second
	// refusalAge is for how long a failed probe is believed: a kernel module
	// may have been loaded since.
	refusalAge = time.Minute
)

// Criu finds out whether the CRIU of this node works. It is safe for concurrent
// use.
type Criu struct {
	binary string

	mu   sync.Mutex // guards last; held while a probe runs
	last probed
}

// probed is the result of one probe.
type probed struct {
	program string // identity of the file that was probed
	at      time.Time
	found   Program
	err     error
}

// Program is a CRIU that works.
type Program struct {
	Path    string // absolute
	Version string // such as "4.1.1"
}

// NewCriu names the executable, absolute or to be found in PATH; "" is "criu".
// Its base name must be criu, by which OCI runtimes look for it.
func NewCriu(binary string) *Criu { return &Criu{binary: cmp.Or(binary, "criu")} }

// Ready returns the program if this node can checkpoint and restore with it.
// Otherwise the error satisfies errdefs.IsFailedPrecondition and says what is
// missing: the program, a newer one, or something in the kernel. The answer is
// remembered as long as the program is the same, a bad one for a minute.
func (c *Criu) Ready(ctx context.Context) (Program, error) {
	path, err := exec.LookPath(c.binary)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return Program{}, fmt.Errorf("find CRIU: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	id, err := programID(path)
	if err != nil {
		return Program{}, fmt.Errorf("find CRIU: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	fresh := c.last.err == nil || time.Since(c.last.at) < refusalAge
	if c.last.program == id && fresh {
		return c.last.found, c.last.err
	}
	p := probed{program: id, at: time.Now()}
	p.found, p.err = probe(ctx, path)
	if ctx.Err() != nil {
		return Program{}, fmt.Errorf("check CRIU: %w", ctx.Err()) // says nothing of CRIU
	}
	c.last = p
	return p.found, p.err
}

// programID changes when the file at path is replaced.
func programID(path string) (string, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return fmt.Sprintf("%s %d:%d %d %d.%d", path, st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec), nil
}

func probe(ctx context.Context, path string) (Program, error) {
	out, err := ask(ctx, path, "--version")
	if err != nil {
		return Program{}, fmt.Errorf("ask %s for its version: %w: %s: %w", path, err, tidy(out), errdefs.ErrFailedPrecondition)
	}
	version, number := parseVersion(out)
	if number < minVersion {
		return Program{}, fmt.Errorf("%s is CRIU %q, and 3.16 or newer is needed: %w", path, version, errdefs.ErrFailedPrecondition)
	}
	if out, err = ask(ctx, path, "check"); err != nil {
		return Program{}, fmt.Errorf("CRIU %s does not work with this kernel: criu check: %s: %w",
			version, cmp.Or(strings.Join(errorsIn(out), "; "), err.Error()), errdefs.ErrFailedPrecondition)
	}
	return Program{Path: path, Version: version}, nil
}

func ask(ctx context.Context, path, argument string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, argument)
	cmd.WaitDelay = time.Second
	cmd.Dir = "/"
	return cmd.CombinedOutput()
}

// parseVersion reads "Version: 4.1.1" as "4.1.1" and 40101.
func parseVersion(out []byte) (string, int) {
	m := regexp.MustCompile(`(?m)^Version: (\d+)\.(\d+)(?:\.(\d+))?`).FindSubmatch(out)
	if m == nil {
		return tidy(out), 0
	}
	number := 0
	for _, part := range m[1:] {
		n, _ := strconv.Atoi(string(part)) // digits, or none for .0
		number = number*100 + min(n, 99)
	}
	return strings.TrimPrefix(string(m[0]), "Version: "), number
}

func tidy(out []byte) string {
	const most = 200
	text := strings.Join(strings.Fields(strings.ToValidUTF8(string(out), "?")), " ")
	return text[:min(len(text), most)]
}

// Environment returns the variable by which an OCI runtime finds the program.
func (p Program) Environment() []string {
	return []string{"PATH=" + filepath.Dir(p.Path) + ":" + cmp.Or(os.Getenv("PATH"), "/usr/sbin:/usr/bin:/sbin:/bin")}
}

// logTail is how much of a log's end is searched for errors, in bytes.
const logTail = 64 << 10

// LogErrors returns the last errors of a log of CRIU's, in one line; "" if
// there is none, or no log.
func LogErrors(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	if st, err := f.Stat(); err == nil && st.Size() > logTail {
		_, _ = f.Seek(-logTail, 2)
	}
	buf := bytes.NewBuffer(nil)
	_, _ = buf.ReadFrom(f)
	found := errorsIn(buf.Bytes())
	return strings.Join(found[max(0, len(found)-3):], "; ")
}

// errorsIn returns the messages of what CRIU calls errors, without time and
// place.
func errorsIn(log []byte) []string {
	var found []string
	place := regexp.MustCompile(`^(?:\([0-9.]+\) +(?:\d+: )?)?Error \([^)]*\): *`)
	lines := bufio.NewScanner(bytes.NewReader(log))
	for lines.Scan() {
		line := strings.ToValidUTF8(lines.Text(), "?")
		at := place.FindStringIndex(line)
		// A daemon in a container may not raise its own limit, and need not.
		if at == nil || strings.Contains(line, "Can't setup RLIMIT_NOFILE for self") {
			continue
		}
		found = append(found, strings.TrimSpace(line[at[1]:]))
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		found = append(found, "a line of CRIU's log is too long")
	}
	return found
}
