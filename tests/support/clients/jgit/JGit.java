import java.io.File;
import org.eclipse.jgit.api.Git;
import org.eclipse.jgit.transport.SshSessionFactory;
import org.eclipse.jgit.transport.sshd.SshdSessionFactoryBuilder;

/** `clone URL FOLDER`, `push REMOTE BRANCH` in a working copy: JGit over Apache MINA's SSH, with the keys and known_hosts of a home. */
public class JGit {
    public static void main(String[] arguments) throws Exception {
        File home = new File(System.getenv("HOME"));
        SshSessionFactory.setInstance(
            new SshdSessionFactoryBuilder()
                .setHomeDirectory(home)
                .setSshDirectory(new File(home, ".ssh"))
                .setPreferredAuthentications("publickey")
                .build(null));
        if (arguments[0].equals("clone")) {
            Git.cloneRepository().setURI(arguments[1]).setDirectory(new File(arguments[2])).call().close();
            return;
        }
        try (Git git = Git.open(new File("."))) {
            git.push().setRemote(arguments[1]).add(arguments[2]).call().forEach(
                result -> result.getRemoteUpdates().forEach(update -> {
                    if (update.getStatus() != org.eclipse.jgit.transport.RemoteRefUpdate.Status.OK) {
                        throw new IllegalStateException(update.toString());
                    }
                }));
        }
    }
}
