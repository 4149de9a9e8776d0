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
	// minVersion is the oldest CRIU that can restore processes into existing namespaces, such as a
	// pod's.
	minVersion = 31600
	// probeTimeout bounds each of the two commands of a probe.
	probeTimeout = 30 * time.Second
	// refusalAge is how long a failed probe is cached. A kernel module may be loaded meanwhile.
	refusalAge = time.Minute
)

// Criu checks whether this node's CRIU works. It is safe for concurrent use.
type Criu struct {
	binary string

	mu   sync.Mutex // guards last; held while a probe runs
	last probed
}

// probed is the result of one probe.
type probed struct {
	program string // programID of the probed file
	at      time.Time
	found   Program
	err     error
}

// Program is a working CRIU.
type Program struct {
	Path    string // absolute
	Version string // such as "4.1.1"
}

// NewCriu returns a check for the given executable, an absolute path or a name looked up in PATH;
// "" means "criu". Its base name must be criu, since OCI runtimes look for that name.
func NewCriu(binary string) *Criu { return &Criu{binary: cmp.Or(binary, "criu")} }

// Ready returns the program if this node can checkpoint and restore with it. Otherwise it returns
// ErrFailedPrecondition and says what is missing: the program, a newer version, or a kernel
// feature. The result is cached until the program file changes, a failure only for a minute. If ctx
// ends, Ready returns ctx's error.
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
		return Program{}, fmt.Errorf("check CRIU: %w", ctx.Err()) // not a result about CRIU
	}
	c.last = p
	return p.found, p.err
}

// programID returns an identity of the file at path that changes when the file is replaced.
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
		return Program{}, fmt.Errorf("read version of %s: %w: %s: %w", path, err, tidy(out), errdefs.ErrFailedPrecondition)
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

// parseVersion parses "Version: 4.1.1" to "4.1.1" and 40101.
func parseVersion(out []byte) (string, int) {
	m := regexp.MustCompile(`(?m)^Version: (\d+)\.(\d+)(?:\.(\d+))?`).FindSubmatch(out)
	if m == nil {
		return tidy(out), 0
	}
	number := 0
	for _, part := range m[1:] {
		n, _ := strconv.Atoi(string(part)) // empty without a third number
		number = number*100 + min(n, 99)
	}
	return strings.TrimPrefix(string(m[0]), "Version: "), number
}

func tidy(out []byte) string {
	const most = 200
	text := strings.Join(strings.Fields(strings.ToValidUTF8(string(out), "?")), " ")
	return text[:min(len(text), most)]
}

// Environment returns the PATH variable with which an OCI runtime finds the program.
func (p Program) Environment() []string {
	return []string{"PATH=" + filepath.Dir(p.Path) + ":" + cmp.Or(os.Getenv("PATH"), "/usr/sbin:/usr/bin:/sbin:/bin")}
}

// CriuConfigAnnotation is the annotation of a specification that names a file with CRIU options.
const CriuConfigAnnotation = "org.criu.config"

// CriuOptions returns the CRIU options for which the OCI runtimes have no flag, as content of a
// configuration file. kind and root are the type and the state directory of the runtime.
//
// tcp-close: the restored container has another address, and the peers of its connections may still
// exist. The process finds its connections closed, as after a network failure.
//
// crun covers masked directories with an empty directory below its root, but the checkpoint names
// the one below crun's default root.
func CriuOptions(kind, root string) string {
	const closeConnections, emptyDir = "tcp-close\n", ".empty-directory"
	if kind != "crun" {
		return closeConnections
	}
	return closeConnections + fmt.Sprintf("external mnt[%s]:%s\n", filepath.Join("/run/crun", emptyDir), filepath.Join(root, emptyDir))
}

// logTail is how many bytes at the end of a log are searched for errors.
const logTail = 64 << 10

// WithLogErrors adds the last three errors of the CRIU log in file to err. It returns err unchanged
// if err is nil, or the log has no errors or cannot be read.
func WithLogErrors(err error, file string) error {
	if err == nil {
		return nil
	}
	if found := logErrors(file); found != "" {
		return fmt.Errorf("%w: CRIU says: %s", err, found)
	}
	return err
}

// logErrors returns the last three errors of a CRIU log in one line, "" if there are none.
func logErrors(file string) string {
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

// errorsIn returns the messages that CRIU marks as errors, without time and source location.
func errorsIn(log []byte) []string {
	var found []string
	place := regexp.MustCompile(`^(?:\([0-9.]+\) +(?:\d+: )?)?Error \([^)]*\): *`)
	lines := bufio.NewScanner(bytes.NewReader(log))
	for lines.Scan() {
		line := strings.ToValidUTF8(lines.Text(), "?")
		at := place.FindStringIndex(line)
		// A CRIU daemon in a container may not raise its own limit and does not need to.
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
