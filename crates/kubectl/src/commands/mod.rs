//! The table of commands: one line each, one file each.

mod change;

/// Makes the modules, the parser's enum and the dispatch from one list.
macro_rules! table {
    ($($module:ident => $command:ident),* $(,)?) => {
        $(mod $module;)*

        #[derive(clap::Subcommand)]
        pub enum Command {
            $($command($module::$command),)*
        }

        impl Command {
            pub async fn run(self, session: &crate::session::Session) -> crate::Result<()> {
                match self {
                    $(Self::$command(command) => Box::pin(command.run(session)).await,)*
                }
            }
        }
    };
}

table! {
    get => Get,
    apply => Apply,
    create => Create,
    delete => Delete,
    rollout => Rollout,
    scale => Scale,
    label => Label,
    annotate => Annotate,
    cordon => Cordon,
    uncordon => Uncordon,
    wait => Wait,
    describe => Describe,
    logs => Logs,
    version => Version,
    cluster_info => ClusterInfo,
    api_resources => ApiResources,
    config => Config,
}
