package e2e

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/micarun/mica/internal/testcgroup"
)

// TestWithCrun runs the tests that use most features of an OCI runtime with crun, on hosts whose
// cgroups prevent nodes from using it. `make test RUNTIME=crun` runs all tests this way.
func TestWithCrun(t *testing.T) {
	if os.Getenv(runtimeEnv) != "" || !testcgroup.Hybrid() {
		t.Skip("the tests already use the OCI runtime of their node")
	}
	tests := []string{
		"TestUserNamespace", "TestUserNamespaceVolumes", "TestMounts", "TestResources", "TestOOMKilled", "TestSecurityContext",
		"TestExecSyncTimeoutKillsAll", "TestMissingCommand", "TestExitCodes", "TestKilledWhileStarted", "TestSharedProcessNamespace", "TestVerboseContainer",
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run", "^("+strings.Join(tests, "|")+")$", "-test.v")
	cmd.Env = append(os.Environ(), runtimeEnv+"=crun", binEnv+"="+shared.bin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("with crun: %v\n%s", err, out)
	}
	for _, name := range tests {
		if !strings.Contains(string(out), "--- PASS: "+name+" ") {
			t.Errorf("with crun, %s did not run", name)
		}
	}
}
