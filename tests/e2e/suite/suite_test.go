// Runs containerd's own snapshotter suite against `plyfs snapshotter`, one server and one store for each case.
package suite

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/mount"
	"github.com/containerd/containerd/pkg/testutil"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
)

func TestPlyfs(t *testing.T) {
	testutil.RequiresRoot(t)
	testsuite.SnapshotterSuite(t, "Plyfs", start)
}

func start(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	socket := filepath.Join(root, "s")
	store := filepath.Join(root, "store")
	server := exec.Command(os.Getenv("PLYFS"), "--root", store, "snapshotter", "--address", socket, "--mounts", os.Getenv("PLYFS_MOUNTS"))
	server.Stderr = os.Stderr
	if err := server.Start(); err != nil {
		return nil, nil, err
	}
	for i := 0; i < 600; i++ {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	connection, err := grpc.Dial("unix://"+socket, grpc.WithInsecure())
	if err != nil {
		return nil, nil, err
	}
	snapshotter := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), "plyfs")
	end := func() error {
		// What a case leaves is removed by the names that the server gives: children first.
		for {
			var names []string
			if err := snapshotter.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
				names = append(names, info.Name)
				return nil
			}); err != nil {
				return err
			}
			removed := 0
			for _, name := range names {
				if snapshotter.Remove(ctx, name) == nil {
					removed++
				}
			}
			if removed == 0 {
				if len(names) > 0 {
					return errors.New("snapshots are left that cannot be removed")
				}
				break
			}
		}
		connection.Close()
		if err := server.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		if err := server.Wait(); err != nil {
			return err
		}
		return mount.UnmountAll(root, 0)
	}
	return snapshotter, end, nil
}
