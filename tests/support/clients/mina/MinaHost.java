import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.PublicKey;
import java.util.List;
import org.apache.sshd.common.config.keys.AuthorizedKeyEntry;
import org.apache.sshd.common.config.keys.KeyUtils;
import org.apache.sshd.common.config.keys.OpenSshCertificate;
import org.apache.sshd.common.config.keys.PublicKeyEntryResolver;
import org.apache.sshd.common.keyprovider.FileKeyPairProvider;
import org.apache.sshd.common.AttributeRepository.AttributeKey;
import org.apache.sshd.common.session.Session;
import org.apache.sshd.common.session.SessionListener;
import org.apache.sshd.server.Environment;
import org.apache.sshd.server.ExitCallback;
import org.apache.sshd.server.SshServer;
import org.apache.sshd.server.channel.ChannelSession;
import org.apache.sshd.server.command.Command;
import org.apache.sshd.server.session.ServerSession;
import org.eclipse.jgit.lib.Repository;
import org.eclipse.jgit.lib.RepositoryCache;
import org.eclipse.jgit.transport.ReceivePack;
import org.eclipse.jgit.transport.UploadPack;
import org.eclipse.jgit.util.FS;

/**
 * A git host as Gerrit's is built: Apache MINA's sshd in front of JGit. `MinaHost PORT ROOT HOST_KEY AUTHORIZED_KEYS CA`; CA is the public key of
 * a certificate authority, or empty. A line on stdout for each command says who the host saw: the SSH user, how it was proved, RELAY_IDENTITY.
 */
public class MinaHost {
    static final AttributeKey<String> PROVED = new AttributeKey<>();

    public static void main(String[] arguments) throws Exception {
        Path root = Path.of(arguments[1]);
        SshServer server = SshServer.setUpDefaultServer();
        server.setHost("127.0.0.1");
        server.setPort(Integer.parseInt(arguments[0]));
        server.setKeyPairProvider(new FileKeyPairProvider(Path.of(arguments[2])));
        List<AuthorizedKeyEntry> keys = AuthorizedKeyEntry.readAuthorizedKeys(Path.of(arguments[3]));
        PublicKey ca = arguments[4].isEmpty() ? null : read(Files.readString(Path.of(arguments[4])));
        server.setPublickeyAuthenticator((user, key, session) -> proves(user, key, session, keys, ca));
        server.setCommandFactory((channel, line) -> new Served(root, line));
        server.addSessionListener(new SessionListener() {
            @Override
            public void sessionException(Session session, Throwable error) {
                System.out.println("session of " + session.getRemoteAddress() + ": " + error);
            }

            @Override
            public void sessionDisconnect(Session session, int reason, String message, String language, boolean initiator) {
                System.out.println("disconnect of " + session.getRemoteAddress() + (initiator ? " by the host: " : " by the client: ") + message);
            }
        });
        server.start();
        System.out.println("listening");
        Thread.currentThread().join();
    }

    static PublicKey read(String line) throws Exception {
        return AuthorizedKeyEntry.parseAuthorizedKeyEntry(line).resolvePublicKey(null, PublicKeyEntryResolver.IGNORING);
    }

    /** The user of a certificate is among its principals, as each Gerrit account has a user name of its own; MINA itself checks signature and time. */
    static boolean proves(String user, PublicKey key, ServerSession session, List<AuthorizedKeyEntry> keys, PublicKey ca) {
        if (key instanceof OpenSshCertificate) {
            OpenSshCertificate certificate = (OpenSshCertificate) key;
            session.setAttribute(PROVED, "certificate:" + certificate.getId());
            return ca != null
                && KeyUtils.compareKeys(certificate.getCaPubKey(), ca)
                && certificate.getPrincipals().contains(user)
                && OpenSshCertificate.isValidNow(certificate);
        }
        session.setAttribute(PROVED, "key:" + KeyUtils.getFingerPrint(key));
        for (AuthorizedKeyEntry entry : keys) {
            try {
                if (KeyUtils.compareKeys(entry.resolvePublicKey(session, PublicKeyEntryResolver.IGNORING), key)) {
                    return true;
                }
            } catch (Exception error) {
                System.out.println("unreadable key: " + error);
            }
        }
        return false;
    }

    static class Served implements Command {
        private final Path root;
        private final String line;
        private InputStream in;
        private OutputStream out;
        private OutputStream err;
        private ExitCallback exit;

        Served(Path root, String line) {
            this.root = root;
            this.line = line;
        }

        public void setInputStream(InputStream stream) { in = stream; }
        public void setOutputStream(OutputStream stream) { out = stream; }
        public void setErrorStream(OutputStream stream) { err = stream; }
        public void setExitCallback(ExitCallback callback) { exit = callback; }
        public void destroy(ChannelSession channel) { }

        public void start(ChannelSession channel, Environment environment) {
            ServerSession session = channel.getServerSession();
            String identity = environment.getEnv().getOrDefault("RELAY_IDENTITY", "(unset)");
            System.out.println("user=" + session.getUsername() + " proved=" + session.getAttribute(PROVED) + " identity=" + identity + " ran=" + line);
            new Thread(() -> exit.onExit(serve(environment.getEnv().get("GIT_PROTOCOL"))), "git").start();
        }

        private int serve(String protocol) {
            String[] words = line.split(" ", 2);
            String name = words.length == 2 ? words[1].replaceAll("^'|'$", "") : "";
            Path path = root.resolve(name.replaceFirst("^/", "").replaceFirst("(\\.git)?$", ".git")).normalize();
            try {
                if (!path.startsWith(root) || !Files.isDirectory(path)) {
                    err.write(("fatal: project " + name + " not found\n").getBytes(StandardCharsets.UTF_8));
                    err.flush();
                    return 1;
                }
                try (Repository repository = RepositoryCache.open(RepositoryCache.FileKey.exact(path.toFile(), FS.DETECTED))) {
                    if (words[0].equals("git-upload-pack")) {
                        UploadPack pack = new UploadPack(repository);
                        if (protocol != null) {
                            pack.setExtraParameters(List.of(protocol.split(":")));
                        }
                        pack.upload(in, out, err);
                    } else if (words[0].equals("git-receive-pack")) {
                        new ReceivePack(repository).receive(in, out, err);
                    } else {
                        err.write("fatal: not permitted on this server\n".getBytes(StandardCharsets.UTF_8));
                        return 1;
                    }
                }
                return 0;
            } catch (IOException error) {
                System.out.println(line + ": " + error);
                return 128;
            }
        }
    }
}
