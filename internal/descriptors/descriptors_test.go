package descriptors

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// raisedEnv makes this test binary print the limits of a program that it starts.
const raisedEnv = "MICA_TEST_RAISED"

func TestMain(m *testing.M) {
	if os.Getenv(raisedEnv) == "" {
		os.Exit(m.Run())
	}
	if err := RaiseLimit(); err != nil {
		panic(err)
	}
	out, err := exec.Command("sh", "-c", "ulimit -S -n; ulimit -H -n").Output()
	if err != nil {
		panic(err)
	}
	_, _ = os.Stdout.Write(out)
}

// A started program has the hard limit as its soft limit, even if this process was started with a
// lower one.
func TestRaiseLimit(t *testing.T) {
	cmd := exec.Command("sh", "-c", `ulimit -S -n 64 && exec "$0"`, os.Args[0])
	cmd.Env = append(os.Environ(), raisedEnv+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	limits := strings.Fields(string(out))
	if len(limits) != 2 || limits[0] != limits[1] || limits[0] == "64" {
		t.Errorf("soft and hard limit of a started program: %v", limits)
	}
}
