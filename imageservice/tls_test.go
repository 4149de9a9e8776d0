package imageservice

import (
	"encoding/pem"
	"os"
	"testing"
)

func writePEM(t *testing.T, path string, certificate []byte) {
	t.Helper()
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
