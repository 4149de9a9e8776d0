package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/micarun/mica/e2e/cluster/specs"
	"github.com/micarun/mica/e2e/node"
)

// Suite is a run of the Kubernetes project's node tests: their program, with a kubelet, an API
// server and etcd that it starts itself, on one node of Mica. Options.Name, Bin and Tools are
// required, and so are the other fields, except for Runtime.
type Suite struct {
	Options
	// Focus and Skip are regular expressions of the specs to run and not to run.
	Focus, Skip string
	// Parallel is the number of concurrent specs.
	Parallel int
	// Timeout bounds the run.
	Timeout time.Duration
	// Runtime names the OCI runtime, crun or runc. Empty: the node's choice.
	Runtime string
	// Report is the directory of logs and reports, which Run replaces.
	Report string
}

const (
	// reportFile is the name of the suite's report in Report, in ginkgo's format.
	reportFile = "report.json"
	// suiteDisk is the size of the kubelet's file system; its unused part takes no memory.
	suiteDisk = 8 << 30
	// suiteWait bounds the clean-up of an interrupted suite.
	suiteWait = 2 * time.Minute
)

// Run runs the specs, stops the node and checks for leftovers. Failed specs are in the summary and
// are not an error.
func (s Suite) Run(ctx context.Context) (summary specs.Summary, err error) {
	s.Size = 1
	c := &Cluster{Options: s.Options}
	if err := c.take(); err != nil {
		return specs.Summary{}, fmt.Errorf("run node tests: %w", err)
	}
	defer func() { err = errors.Join(err, c.Release()) }()
	// Remove the leftovers of a killed run.
	_ = c.load(ctx)
	_ = c.Down(ctx)
	c.Nodes = nil
	undo, err := makeMountPoints()
	if err != nil {
		return specs.Summary{}, fmt.Errorf("run node tests: %w", err)
	}
	defer func() { err = errors.Join(err, undo()) }()
	defer func() { err = errors.Join(err, s.down(context.WithoutCancel(ctx), c)) }()
	if err := os.RemoveAll(s.Report); err != nil {
		return specs.Summary{}, fmt.Errorf("run node tests: %w", err)
	}
	baseline, err := s.up(ctx, c)
	if err != nil {
		return specs.Summary{}, fmt.Errorf("run node tests: %w\n%s", err, c.LogTails(15))
	}
	summary, err = s.test(ctx, c.Nodes[0])
	return summary, errors.Join(err, s.lookForLeaks(context.WithoutCancel(ctx), c.Nodes[0], baseline))
}

// up starts the node without a kubelet, and takes its census.
func (s Suite) up(ctx context.Context, c *Cluster) (node.Census, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	h, err := newConfinedHost(ctx, c.cgroupOf(0))
	if err != nil {
		return nil, err
	}
	n := c.newNode(0, h)
	c.Nodes = append(c.Nodes, n)
	n.Mica.OCIRuntime, n.Mica.ConfDir = s.Runtime, ""
	if err := errors.Join(os.MkdirAll(s.Report, 0o755), c.save(), c.join(ctx, n), n.prepareSuite(ctx)); err != nil {
		return nil, err
	}
	if err := n.spawn(filepath.Join(c.Bin, "imagebox"), "serve", "-addr", registry); err != nil {
		return nil, err
	}
	if n.Mica, err = node.Start(ctx, n.Mica.Options); err != nil {
		return nil, err
	}
	if err := os.WriteFile(n.runtimePid(), []byte(strconv.Itoa(n.Mica.Pid())), 0o644); err != nil {
		return nil, err
	}
	baseline, err := n.Mica.Settle(ctx)
	if err != nil {
		return nil, err
	}
	// Libraries open these once, at their first use.
	baseline["daemon fd"] = append(baseline["daemon fd"], "/", "/sys/fs/cgroup")
	return baseline, nil
}

// test runs the suite's program.
func (s Suite) test(ctx context.Context, n *Node) (specs.Summary, error) {
	log, err := os.Create(filepath.Join(s.Report, "suite.log"))
	if err != nil {
		return specs.Summary{}, fmt.Errorf("run node tests: %w", err)
	}
	defer log.Close()
	suite := n.host.command(ctx, filepath.Join(s.Tools, "ginkgo"), s.arguments(n)...)
	suite.Dir, suite.Stdout, suite.Stderr = n.work(), log, log
	suite.Env = append(os.Environ(), "TMPDIR="+n.work(), "PATH="+n.wrappers()+":"+os.Getenv("PATH"))
	suite.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	suite.Cancel = func() error { return unix.Kill(-suite.Process.Pid, unix.SIGINT) }
	suite.WaitDelay = suiteWait
	ran := suite.Run()
	summary, err := specs.Read(filepath.Join(s.Report, reportFile))
	if err != nil {
		return specs.Summary{}, errors.Join(fmt.Errorf("run node tests: %w: see %s", err, log.Name()), ran)
	}
	if ran != nil && len(summary.Failed) == 0 && len(summary.Broken) == 0 {
		return summary, fmt.Errorf("run node tests: %w: see %s", ran, log.Name())
	}
	return summary, ctx.Err()
}

// arguments returns ginkgo's arguments, followed by the suite's.
func (s Suite) arguments(n *Node) []string {
	return []string{
		"--procs=" + strconv.Itoa(s.Parallel), "--focus=" + s.Focus, "--skip=" + s.Skip, "--timeout=" + s.Timeout.String(),
		"--no-color", "--silence-skips", "--output-dir=" + s.Report, "--json-report=" + reportFile,
		filepath.Join(n.wrappers(), suiteProgram), "--",
		"--report-dir=" + s.Report, "--prepull-images=false",
		"--container-runtime-endpoint=unix://" + n.Mica.Socket(), "--kubelet-config-file=" + n.kubeletConfig(),
		"--container-runtime-process-name=micad", "--container-runtime-pid-file=" + n.runtimePid(),
		"--kubelet-flags=--node-ip=" + n.IP.String(),
		// Without it, the kubelet takes most statistics of pods and containers from cAdvisor, which
		// supports only two other runtimes.
		"--feature-gates=PodAndContainerStatsFromCRI=true",
	}
}

// reclaim moves processes back to the root of the namespace, where the kubelet found them, and
// removes their cgroups.
func (n *Node) reclaim() error {
	var errs []error
	for _, root := range n.cgroups() {
		for _, name := range []string{"system", "kubelet"} {
			procs, err := os.ReadFile(filepath.Join(root, name, "cgroup.procs"))
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			errs = append(errs, err)
			for pid := range strings.FieldsSeq(string(procs)) {
				err := os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(pid), 0o644)
				if !errors.Is(err, unix.ESRCH) {
					errs = append(errs, err)
				}
			}
			errs = append(errs, os.Remove(filepath.Join(root, name)))
		}
	}
	return errors.Join(errs...)
}

// lookForLeaks ends the programs that the suite may have left, removes all pods, and returns what
// is left of them. The suite kills its kubelet while pods exist.
func (s Suite) lookForLeaks(ctx context.Context, n *Node, baseline node.Census) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	var errs []error
	for _, program := range []string{"kubelet", suiteProgram} {
		errs = append(errs, n.host.end(ctx, program))
	}
	errs = append(errs, n.reclaim(), n.Mica.Empty(ctx), n.Mica.RemoveImages(ctx))
	leaks, err := n.Mica.AwaitClean(ctx, baseline, 30*time.Second)
	errs = append(errs, err)
	for _, leak := range leaks {
		if !foreign().MatchString(leak) {
			errs = append(errs, fmt.Errorf("left behind: %s", leak))
		}
	}
	return errors.Join(errs...)
}

// foreign matches resources that are not leaks of Mica: the cgroups of pods and their classes,
// which belong to the kubelet; and goroutines, whose number depends on the machine's load. The
// end-to-end tests check the goroutines.
func foreign() *regexp.Regexp {
	return regexp.MustCompile(`^cgroup: .*/kubepods(/burstable|/besteffort)?(/pod[0-9a-f-]+)?$|^goroutine: `)
}

// down stops the node.
func (s Suite) down(ctx context.Context, c *Cluster) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if len(c.Nodes) > 0 {
		if err := saveLogs(c.Nodes[0].logs(), s.Report); err != nil {
			return errors.Join(err, c.Down(ctx))
		}
	}
	return c.Down(ctx)
}

// saveLogs copies the logs of the node's programs.
func saveLogs(from, to string) error {
	logs, err := filepath.Glob(filepath.Join(from, "*.log"))
	if err != nil || len(logs) == 0 {
		return err
	}
	if out, err := exec.Command("cp", append(slices.Clone(logs), to)...).CombinedOutput(); err != nil {
		return fmt.Errorf("save logs: %w: %s", err, out)
	}
	return nil
}

// makeMountPoints makes directories at the fixed paths of the suite's programs, on which the node
// mounts its own. undo removes those that did not exist before.
func makeMountPoints() (undo func() error, err error) {
	var made []string
	undo = func() (err error) {
		for _, dir := range made {
			err = errors.Join(err, os.Remove(dir))
		}
		return err
	}
	for _, dir := range []string{kubeletFiles, apiserverFiles} {
		err := os.Mkdir(dir, 0o755)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("make mount point: %w", err), undo())
		}
		made = append(made, dir)
	}
	return undo, nil
}
