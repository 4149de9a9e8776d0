package cluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// tools are the Kubernetes programs by name, with their packages, ordered by build time.
func tools() [][2]string {
	return [][2]string{
		{"kubelet", "k8s.io/kubernetes/cmd/kubelet"},
		{"kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"},
		{"kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"},
		{"kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"},
		{"kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"},
		{"kubectl", "k8s.io/kubernetes/cmd/kubectl"},
		{"agnhost", "k8s.io/kubernetes/test/images/agnhost"},
		{"etcd", "go.etcd.io/etcd/server/v3"},
	}
}

// suiteProgram is the program with the Kubernetes project's node tests.
const suiteProgram = "e2e_node.test"

// suiteTools are the programs for Suite, in the same form.
func suiteTools() [][2]string {
	return [][2]string{
		{"kubelet", "k8s.io/kubernetes/cmd/kubelet"},
		{suiteProgram, "k8s.io/kubernetes/test/e2e_node"},
		{"agnhost", "k8s.io/kubernetes/test/images/agnhost"},
		{"ginkgo", "github.com/onsi/ginkgo/v2/ginkgo"},
	}
}

// BuildSuite is BuildTools for the programs of Suite.
func BuildSuite(ctx context.Context, root string, report func(string)) (string, error) {
	return buildAll(ctx, root, suiteTools(), report)
}

// BuildTools builds the missing Kubernetes programs and returns their directory. The user's cache
// directory has one for each state of their module. root is the root directory of the product's
// module; report is called for every program before it is built.
func BuildTools(ctx context.Context, root string, report func(string)) (string, error) {
	return buildAll(ctx, root, tools(), report)
}

func buildAll(ctx context.Context, root string, list [][2]string, report func(string)) (string, error) {
	module := filepath.Join(root, "e2e/cluster/kubernetes")
	versions, err := os.ReadFile(filepath.Join(module, "go.mod"))
	if err != nil {
		return "", fmt.Errorf("build tools: %w", err)
	}
	flags, err := stamp(string(versions))
	if err != nil {
		return "", fmt.Errorf("build tools: %w", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("build tools: %w", err)
	}
	dir := filepath.Join(cache, "mica-kubernetes", fmt.Sprintf("%.8x", sha256.Sum256(versions)))
	for _, tool := range list {
		name, path := tool[0], filepath.Join(dir, tool[0])
		if _, err := os.Stat(path); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("build tools: %w", err)
		}
		begin := time.Now()
		report("building " + name)
		arguments := []string{"build"}
		if name == suiteProgram {
			arguments = []string{"test", "-c", "-vet=off"}
		}
		build := exec.CommandContext(ctx, "go", append(arguments, "-trimpath", "-ldflags", flags, "-o", path+".new", tool[1])...)
		build.Dir, build.Env = module, append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w: %s", name, err, out)
		}
		if err := os.Rename(path+".new", path); err != nil {
			return "", fmt.Errorf("build %s: %w", name, err)
		}
		report(fmt.Sprintf("built %s in %.0f s", name, time.Since(begin).Seconds()))
	}
	return dir, nil
}

// stamp returns linker flags that set the version of the programs, as in a release.
func stamp(versions string) (string, error) {
	found := regexp.MustCompile(`k8s\.io/kubernetes v(\d+)\.(\d+)\.\d+`).FindStringSubmatch(versions)
	if found == nil {
		return "", errors.New("go.mod requires no k8s.io/kubernetes")
	}
	_, version, _ := strings.Cut(found[0], " ")
	const variables = "k8s.io/component-base/version."
	return fmt.Sprintf("-s -w -X %[1]sgitVersion=%[2]s -X %[1]sgitMajor=%[3]s -X %[1]sgitMinor=%[4]s -X %[1]sgitTreeState=clean",
		variables, version, found[1], found[2]), nil
}

// agnhostSource returns the directory of agnhost's source, which also contains the files that it
// serves.
func agnhostSource(ctx context.Context, root string) (string, error) {
	list := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", "k8s.io/kubernetes/test/images/agnhost")
	list.Dir, list.Env = filepath.Join(root, "e2e/cluster/kubernetes"), append(os.Environ(), "GOWORK=off")
	out, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("find source of agnhost: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}
