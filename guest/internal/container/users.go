package container

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"torpor/guest/internal/files"
)

// identity is who a process of the container runs as.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// maxAccounts bounds how much of a passwd or group file is read, in bytes.
const maxAccounts = 4 << 20

// resolve finds a Dockerfile's USER, `user[:group]` by name or number, in the container's own passwd and group.
// Like in Docker, a number need not be listed, and the groups a name belongs to count only when no group is given.
func resolve(root *files.Root, user string) (identity, error) {
	name, group, hasGroup := strings.Cut(user, ":")
	found, known, err := account(root, name)
	if err != nil {
		return identity{}, err
	}
	if !hasGroup || group == "" {
		if known != "" {
			found.groups, err = memberships(root, known, found.gid)
		}
		return found, err
	}
	found.gid, err = groupID(root, group)
	return found, err
}

// account looks a user up; known is the name it is listed under.
func account(root *files.Root, wanted string) (found identity, known string, err error) {
	if wanted == "" {
		wanted = "0"
	}
	number, isNumber := parseID(wanted)
	found = identity{uid: number, home: "/"}
	err = eachLine(root, "/etc/passwd", 7, func(fields []string) bool {
		uid, isListed := parseID(fields[2])
		if !isListed || (fields[0] != wanted && !(isNumber && uid == number)) {
			return true
		}
		gid, _ := parseID(fields[3])
		found, known = identity{uid: uid, gid: gid, home: fields[5]}, fields[0]
		return false
	})
	if err == nil && known == "" && !isNumber {
		err = fmt.Errorf("find user %q: not in /etc/passwd", wanted)
	}
	return found, known, err
}

func groupID(root *files.Root, wanted string) (uint32, error) {
	number, isNumber := parseID(wanted)
	isFound := isNumber
	err := eachLine(root, "/etc/group", 3, func(fields []string) bool {
		if gid, isListed := parseID(fields[2]); isListed && fields[0] == wanted {
			number, isFound = gid, true
			return false
		}
		return true
	})
	if err == nil && !isFound {
		err = fmt.Errorf("find group %q: not in /etc/group", wanted)
	}
	return number, err
}

func memberships(root *files.Root, user string, primary uint32) ([]uint32, error) {
	var groups []uint32
	err := eachLine(root, "/etc/group", 4, func(fields []string) bool {
		gid, isListed := parseID(fields[2])
		if isListed && gid != primary && slices.Contains(strings.Split(fields[3], ","), user) {
			groups = append(groups, gid)
		}
		return true
	})
	return groups, err
}

// eachLine calls each with the fields of every line that has that many, until it says no. No file has no lines.
func eachLine(root *files.Root, path string, fields int, each func(fields []string) bool) error {
	file, _, err := root.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(io.LimitReader(file, maxAccounts))
	lines.Buffer(nil, maxAccounts)
	for lines.Scan() {
		if split := strings.Split(strings.TrimSpace(lines.Text()), ":"); len(split) >= fields && !each(split) {
			return nil
		}
	}
	return lines.Err()
}

func parseID(text string) (uint32, bool) {
	number, err := strconv.ParseUint(text, 10, 31)
	return uint32(number), err == nil
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment adds PATH and HOME where the image sets none.
func environment(given []string, home string) []string {
	env := slices.Clone(given)
	for _, fallback := range []string{"PATH=" + defaultPath, "HOME=" + home} {
		name, _, _ := strings.Cut(fallback, "=")
		isSet := func(variable string) bool { return strings.HasPrefix(variable, name+"=") }
		if !slices.ContainsFunc(env, isSet) {
			env = append(env, fallback)
		}
	}
	return env
}
