package cluster_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/klog/v2"

	"github.com/micarun/mica/e2e/cluster"
	"github.com/micarun/mica/e2e/node"
)

// suite is the data shared by all tests; none changes it.
type suite struct {
	*cluster.Cluster
	baseline []node.Census // of each node, before the first test
}

// shared is set once, before the first test runs.
var shared suite

func TestMain(m *testing.M) {
	keep := flag.Bool("keep", false, "use the cluster of an earlier run if there is one, and leave it running")
	flag.Parse()
	klog.SetLogger(klog.Logger{}) // the CRI client logs every error that it returns
	code, err := run(m, *keep)
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster tests:", err)
		code = 1
	}
	os.Exit(code)
}

// run runs the tests on a cluster of two nodes.
func run(m *testing.M, keep bool) (code int, err error) {
	if os.Geteuid() != 0 {
		fmt.Println("cluster tests need root; skipped")
		return 0, nil
	}
	ctx := context.Background()
	begin := time.Now()
	if shared.Cluster, err = up(ctx, keep); err != nil {
		return 0, err
	}
	fmt.Printf("cluster is ready after %.1f s\n", time.Since(begin).Seconds())
	if err := takeBaseline(ctx); err != nil {
		return 0, errors.Join(err, shared.Down(ctx), shared.Release())
	}
	code = m.Run()
	if keep {
		return code, shared.Release()
	}
	return code, errors.Join(checkEmptied(ctx), shared.Down(ctx), shared.Release())
}

// takeBaseline takes the nodes' censuses after a first pod, for which daemons and kubelets allocate
// what they keep.
func takeBaseline(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, n := range shared.Nodes {
		manifest := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "first"}, "spec": {
			"nodeName": %q, "containers": [{"name": "main", "image": %q, "command": ["sleep", "infinity"]}]}}`, n.Name, cluster.Busybox)
		// The namespace's service account may not exist yet.
		if err := cluster.Await(ctx, "a first pod", func(ctx context.Context) error {
			_, err := shared.KubectlInput(ctx, manifest, "create", "--filename=-")
			return err
		}); err != nil {
			return err
		}
		if _, err := shared.Kubectl(ctx, "wait", "pod/first", "--for=condition=ready", "--timeout=3m"); err != nil {
			return err
		}
		if _, err := shared.Kubectl(ctx, "delete", "pod", "first", "--now"); err != nil {
			return err
		}
		census, err := n.Mica.Census(ctx)
		if err != nil {
			return err
		}
		shared.baseline = append(shared.baseline, census)
	}
	return nil
}

// up starts the cluster with the binaries in the directory MICA_BIN.
func up(ctx context.Context, keep bool) (*cluster.Cluster, error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return nil, err
	}
	tools, err := cluster.BuildTools(ctx, root, func(line string) { fmt.Println(line) })
	if err != nil {
		return nil, err
	}
	if _, err := cluster.BuildImages(ctx, root, tools); err != nil {
		return nil, err
	}
	bin := os.Getenv("MICA_BIN")
	if bin == "" {
		bin = filepath.Join(root, "bin")
	}
	options := cluster.Options{Name: "mica-suite", Bin: bin, Tools: tools, Size: 2}
	c, err := cluster.Up(ctx, options)
	if !errors.Is(err, cluster.ErrRuns) {
		return c, err
	}
	if c, err = cluster.Open(ctx, options); err != nil {
		return nil, err
	}
	if keep {
		return c, c.ReplaceMica(ctx)
	}
	// A killed test run left this cluster.
	if err := errors.Join(c.Down(ctx), c.Release()); err != nil {
		fmt.Println("cluster of an earlier run:", err)
	}
	return cluster.Up(ctx, options)
}

// checkEmptied waits until the kubelets have removed the tests' pods, and checks for leftovers.
func checkEmptied(ctx context.Context) error {
	// The kubelet removes sandboxes once a minute.
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	classes := regexp.MustCompile(`^cgroup: .*/kubepods(/burstable|/besteffort)?$`)
	var errs []error
	for index, n := range shared.Nodes {
		err := cluster.Await(ctx, "pods of "+n.Name+" to be removed", func(ctx context.Context) error {
			pods, err := n.Mica.Runtime.ListPodSandbox(ctx, nil)
			if err == nil && len(pods) > 0 {
				err = fmt.Errorf("%d pods are left, such as %v", len(pods), pods[0].Metadata)
			}
			return err
		})
		errs = append(errs, err, n.Mica.RemoveImages(ctx))
		leaks, err := n.Mica.AwaitClean(ctx, shared.baseline[index], 30*time.Second)
		errs = append(errs, err)
		for _, leak := range leaks {
			// The kubelet keeps a cgroup for each class of pods.
			if classes.MatchString(leak) {
				continue
			}
			errs = append(errs, fmt.Errorf("%s: left behind: %s", n.Name, leak))
		}
		if slices.ContainsFunc(leaks, func(leak string) bool { return strings.HasPrefix(leak, "goroutine") }) {
			stacks, err := n.Mica.DumpGoroutines() // this ends the daemon, after its last test
			errs = append(errs, err)
			fmt.Printf("goroutines of %s:\n%s\n", n.Name, stacks)
		}
	}
	return errors.Join(errs...)
}
