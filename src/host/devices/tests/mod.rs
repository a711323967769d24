mod images;
mod machine;
